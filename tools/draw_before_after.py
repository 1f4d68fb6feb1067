"""README's picture: the width of every group before and after, from the report of a run.

    onnxprune models/fashion_resnet.onnx pruned.onnx --ratio 0.3 --validate models/fashion_test.npz --report report.json
    python tools/draw_before_after.py report.json > tools/before_after.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

BAR, GAP, TOP, HEIGHT, LEFT = 46, 10, 74, 150, 24
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#667085}"
    ".big{font-size:20px;font-weight:600;fill:#0f766e}.n{font-size:11px}"
)


def picture(report: dict) -> str:
    """An SVG: a pale bar for what every group had, a full one for what it keeps, and what the whole model keeps."""
    groups, before, after = report["groups"], report["before"], report["after"]
    most = max(g["units"] for g in groups)
    width = 2 * LEFT + len(groups) * (BAR + GAP)
    quality = report["validation"]
    figures = [
        ("parameters", f"{before['parameters']:,} → {after['parameters']:,}"),
        ("MACs", f"{before['macs'] / 1e6:.1f} M → {after['macs'] / 1e6:.1f} M"),
        (quality["metric"], f"{100 * quality['before']:.2f} % → {100 * quality['after']:.2f} %"),
    ]
    box = f'viewBox="0 0 {width} {TOP + HEIGHT + 46}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">', f"<style>{STYLE}</style>"]
    for k, (name, value) in enumerate(figures):
        x = LEFT + k * (width - 2 * LEFT) / len(figures)
        parts.append(f'<text x="{x:.0f}" y="22">{escape(name)}</text>')
        parts.append(f'<text class="big" x="{x:.0f}" y="46">{escape(value)}</text>')
    for k, g in enumerate(groups):
        x = LEFT + k * (BAR + GAP)
        for count, colour in ((g["units"], "#d5dae1"), (g["kept"], "#0f766e")):
            size = HEIGHT * count / most
            place = f'x="{x}" y="{TOP + HEIGHT - size:.1f}" width="{BAR}" height="{size:.1f}"'
            parts.append(f'<rect {place} rx="3" fill="{colour}"/>')
        parts.append(f'<text class="n" x="{x}" y="{TOP + HEIGHT + 16}">{g["kept"]} of {g["units"]}</text>')
    note = "channels kept in each group of coupled layers; pale: before"
    return "\n".join([*parts, f'<text x="{LEFT}" y="{TOP + HEIGHT + 38}">{note}</text>', "</svg>", ""])


if __name__ == "__main__":
    sys.stdout.write(picture(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
