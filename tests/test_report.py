"""Tables for people, JSON for machines."""

from __future__ import annotations

import io
import json

import numpy as np
from rich.console import Console

from onnxprune.options import Options
from onnxprune.report import Report, print_inspection, print_report, to_json
from onnxprune.report.tables import ROWS, size
from onnxprune.results import Cost, FrozenInfo, GroupInfo, Inspection, Proof

GROUPS = tuple(GroupInfo(f"group{i}", (f"conv{i}", f"conv{i + 1}"), 8, 8, 6, 1000, 20000) for i in range(ROWS + 3))
FROZEN = (
    FrozenInfo("head[/bold]", 0, 5, "", "", "graph output"),
    FrozenInfo("w1", 1, 4, "Mystery", "node_7", "no rule for my.domain::Mystery"),
    FrozenInfo("w2", 1, 4, "Mystery", "node_7", "no rule for my.domain::Mystery"),
)
COST = Cost(1000, 20000, 4_200_000)
REPORT = Report(
    COST, Cost(500, 8000, 2_100_000), GROUPS, FROZEN, Proof(7, 3e-7, 1e-5, (1, 2), ("CPUExecutionProvider",)),
    Options(ratio=np.float64(0.5), input_shapes={"x": (1, 3)}), ("conv0 looks like a fixed transform",),
    {"metric": "top-1", "samples": 2000, "before": 0.92, "after": 0.9, "drop": 0.02, "interval": (0.01, 0.03),
     "unit": "share", "higher_is_better": True, "warnings": (), "fidelity": {"agreement": 0.95, "cosine": 0.99, "snr": 17.0}}, {"trace": 0.25},
)  # fmt: skip


def printed(result: Report | Inspection, verbose: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=160, markup=False, highlight=False)
    (print_report if isinstance(result, Report) else print_inspection)(result, console, verbose)  # type: ignore[arg-type]
    return out.getvalue()


def test_table() -> None:
    text = printed(REPORT, verbose=False)
    for part in (
        "50.0%",
        "40.0%",
        "4.2 MB",
        "top-1 of 2,000",
        "-2.00 points (-3.00 to -1.00)",
        "agreement 95.00%",
        "head[/bold][0]",
        "3.0e-07",
        "1e-05",
    ):
        assert part in text
    assert "note: conv0 looks like a fixed transform" in text
    assert "and 3 more" in text
    assert f"group{ROWS + 2}" not in text
    assert "trace 0.25" not in text


def test_verbose_shows_all() -> None:
    text = printed(REPORT, verbose=True)
    assert f"group{ROWS + 2}" in text
    assert "trace 0.25" in text


def test_inspection_names_operator_node_and_reason() -> None:
    text = printed(Inspection(GROUPS, FROZEN, COST), verbose=False)
    line = next(line for line in text.splitlines() if "Mystery" in line)
    assert all(part in line for part in ("no rule for my.domain::Mystery", "node_7", " 8 ", "w1[1], w2[1]"))


def test_json_is_plain_and_complete() -> None:
    data = to_json(REPORT)
    assert json.loads(json.dumps(data)) == data
    assert data["schema"] == 1
    assert {"onnxprune", "onnx", "numpy", "python"} <= set(data["versions"])
    assert any(name.startswith("onnxruntime") for name in data["versions"])
    assert data["providers"] == ["CPUExecutionProvider"]
    assert data["options"]["ratio"] == 0.5
    assert (data["before"]["parameters"], data["after"]["parameters"]) == (1000, 500)
    assert data["frozen"][1]["reason"] == "no rule for my.domain::Mystery"
    assert to_json(Inspection(GROUPS, FROZEN, COST))["kind"] == "inspection"


def test_sizes() -> None:
    counts = (0, 999, 1000, 4_200_000, 3_100_000_000)
    assert [size(count) for count in counts] == ["0 B", "999 B", "1.0 kB", "4.2 MB", "3.10 GB"]
