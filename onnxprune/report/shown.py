"""A report as text, and as a table for notebooks. Knows results as data and computes none."""

from __future__ import annotations

from html import escape
from io import StringIO

from rich.console import Console

from onnxprune.report.run import Report
from onnxprune.report.tables import print_report
from onnxprune.units import written

WIDTH = 160


def report_text(report: Report, verbose: bool = False) -> str:
    """What the command line prints of a run."""
    out = StringIO()
    print_report(report, Console(file=out, width=WIDTH, markup=False, highlight=False, emoji=False), verbose)
    return out.getvalue()


def report_html(report: Report) -> str:
    """A small table of what the model cost before and after, with what was measured and proven below."""
    before, after = report.before, report.after
    rows = [
        (name, f"{old:,}", f"{new:,}", f"{new / old:.1%}" if old else "-")
        for name, old, new in (
            ("parameters", before.parameters, after.parameters), ("MACs", before.macs, after.macs),
            ("bytes", before.bytes, after.bytes),
        )
    ]  # fmt: skip
    if report.validation is not None:
        found = report.validation
        was, now = (written(found[key], found["unit"]) for key in ("before", "after"))
        rows.append((str(found["metric"]), was, now, ""))
    head = "".join(f"<th>{name}</th>" for name in ("", "before", "after", "kept"))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    proof = f"equal within {report.proof.error:.1e}; {len(report.groups)} groups, {len(report.frozen)} axes stay"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(proof)}</p>"
