"""Tables for people, JSON for machines."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from onnxprune.options import Options
from onnxprune.report import Report, headline, print_inspection, print_report, report_text, text, to_json
from onnxprune.report.parts import ROWS
from onnxprune.report.tables import size
from onnxprune.results import Compared, Cost, FrozenInfo, GroupInfo, Inspection, Proof, Sweep, SweepPoint

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


CUT = "net.onnx keeps 40.0 % of its MACs and 50.0 % of its parameters"
NAMED = replace(REPORT, files={"model": "models/net.onnx"})
QUALITY: dict[str, Any] = {**(REPORT.validation or {}), "failed": ()}
FASTER = {"measured": {"speedup": 1.25, "before": {"median": 5.0}, "after": {"median": 4.0}}}
DENSE = SweepPoint("original", "", 0.0, 0.9465, 1000, 20000, 4000)
ENDS = (
    SweepPoint("obs-0.6", "obs", 0.6, 0.5, 300, 4000, 1200), SweepPoint("obs-0.2", "obs", 0.2, 0.93, 700, 12000, 2800),
    SweepPoint("l2-0.2", "l2", 0.2, 0.9, 700, 12000, 2800), SweepPoint("l2-0.9", "l2", 0.9, error="no unit may go"),
)  # fmt: skip
SWEEP = Sweep("top-1", "data.npz", DENSE, ENDS, {"macs": ("obs-0.6", "obs-0.2"), "parameters": ("obs-0.6",)}, Options(),
              unit="share", files={"model": "net.onnx"})  # fmt: skip


@pytest.mark.parametrize(("of", "said"), [("latency", "other times may give other widths"), ("macs", "the search: onnxprune")])
def test_a_search_by_time_is_not_said_to_be_repeatable(of: Any, said: str) -> None:
    search = {"ratio": 0.3, "tried": [{"ratio": 0.3, "holds": True}], "command": "onnxprune --ratio 0.3 a b"}
    assert said in report_text(replace(NAMED, search=search, options=Options(of=of)))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (NAMED, f"{CUT}; its top-1 is 90.00 % where it was 92.00 % on 2,000 samples; the cut is proven at 2 sizes of its inputs."),
        (replace(NAMED, validation=None), f"{CUT}; its accuracy was not measured; the cut is proven at 2 sizes of its inputs."),
        (replace(NAMED, files={}), f"The model{CUT[8:]}; its top-1 is 90.00 %"),
        (replace(NAMED, proof=replace(NAMED.proof, batches=(1,))), "; the cut is proven."),
        (replace(NAMED, proof=replace(NAMED.proof, sizes=("N=1", "N=2", "N=3"))), "; the cut is proven at 3 sizes of its inputs."),
        (replace(NAMED, validation={**QUALITY, "metric": "score.py:bleu", "unit": "", "before": 31.25, "after": 30.5}), "its score.py:bleu is 30.5 where it was 31.25 on"),
        (replace(NAMED, validation={**QUALITY, "metric": "loss", "unit": "nats", "higher_is_better": False}), "its loss is 0.9 nats where it was 0.92 nats (less is better) on"),
        (replace(NAMED, validation={**QUALITY, "warnings": ("labels are off by one",)}), "on 2,000 samples, which are doubtful;"),
        (replace(NAMED, validation={**QUALITY, "metric": "cosine", "unit": "", "after": 0.99}), "its cosine with the original is 0.99 on"),
        (replace(NAMED, validation={**QUALITY, "metric": "snr", "unit": "dB", "after": 17.0}), "its answers are 17.0 dB from those of the original"),
        (replace(NAMED, validation={**QUALITY, "failed": ("top-1 drops by 0.0200",)}), ". A gate failed: top-1 drops by 0.0200."),
        (replace(NAMED, latency=FASTER), "; it runs 1.25 times faster;"),
        (replace(NAMED, latency={"measured": {**FASTER["measured"], "speedup": 0.8}}), "; it runs 1.25 times slower;"),
        (replace(NAMED, before=Cost(1000, 0, 1), after=Cost(500, 0, 1)), "net.onnx keeps 50.0 % of its parameters; its"),
        (Compared(COST, Cost(500, 8000, 1), QUALITY), "B has 40.0 % of the MACs and 50.0 % of the parameters of A; its top-1 is 90.00 % where it was 92.00 %"),
        (SWEEP, "net.onnx pruned: from 20.0 % of its MACs with 50.00 % top-1 (obs, ratio 0.6) to 60.0 % of its MACs with 93.00 % top-1 (obs, ratio 0.2); uncut it has 94.65 %; 3 cuts were tried."),
        (replace(SWEEP, points=ENDS[3:], fronts={"macs": (), "parameters": ()}), "No cut of net.onnx could be made, of 1 that were tried."),
    ],
)  # fmt: skip
def test_a_sentence_to_quote(result: Any, said: str) -> None:
    found = headline(result)
    assert said in found
    assert "\n" not in found


def test_only_a_page_bears_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOURCE_DATE_EPOCH is the date where it is one (reproducible-builds.org); what is none loses nothing."""
    dates = {}
    for given in ("1700000000", "1800000000", "no date", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
        page = text(Path("r.html"), REPORT, "net.onnx")
        assert page == text(Path("r.html"), REPORT, "net.onnx") or not given.startswith("1")
        dates[given] = page.partition('"date": "')[2][:20]
        assert "date" not in json.loads(text(Path("r.json"), REPORT, "net.onnx"))
    assert dates["1700000000"] == "2023-11-14 22:13 UTC"
    assert dates["1800000000"] == "2027-01-15 08:00 UTC"
    assert dates["no date"][:10] == dates["9" * 30][:10] != dates["1800000000"][:10]
