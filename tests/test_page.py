"""The page of a report: it opens from disk, sorts, filters, shows what the JSON says, and runs no name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from browser import opened

from onnxprune.cli import main
from onnxprune.options import Options
from onnxprune.report import Report, to_json, write
from onnxprune.report.page import render
from onnxprune.results import Cost, CurveInfo, FrozenInfo, GroupInfo, Proof

EVIL = "</script><script>alert('ran')</script><img src=x onerror=alert('ran')>"
GROUPS = tuple(GroupInfo(f"conv{i}", (f"conv{i}", "next"), 8 * i, 8 * i, 8 * i - i, 100 * i, 10) for i in (2, 10, 1))
REPORT = Report(
    Cost(1000, 20000, 4_200_000), Cost(500, 8000, 2_100_000), GROUPS,
    (FrozenInfo("w1", 1, 4, "Mystery", "node_7", "no rule"), FrozenInfo("w2", 0, 5, "output", "y", "keeps its shape")),
    Proof(7, 3e-7, 1e-5, (1, 2), ("CPUExecutionProvider",)), Options(memory=4 << 30),
    curves=(CurveInfo("conv2", 16, (0.0, 0.01, 0.1, None), 0.5, 0.3), CurveInfo("conv1", 8, (0.0, 0.2, 0.4), None, 0.0)),
)  # fmt: skip


def names(page: Any, section: str) -> list[str]:
    cells: list[str] = page.locator(f"section:has(h2:text-is('{section}')) tbody td:first-child").all_inner_texts()
    return cells


def test_sorts_and_filters(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write(path, REPORT, "model.onnx")
    with opened(path) as page:
        assert page.title() == "model.onnx - onnxprune"
        assert names(page, "Groups") == ["conv2", "conv10", "conv1"]
        groups = page.locator("section:has(h2:text-is('Groups'))")
        groups.get_by_role("button", name="units", exact=True).click()
        assert names(page, "Groups") == ["conv10", "conv2", "conv1"]
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("units")
        groups.get_by_role("button", name="units", exact=True).click()
        assert names(page, "Groups") == ["conv1", "conv2", "conv10"]
        groups.get_by_role("searchbox").fill("conv1")
        assert names(page, "Groups") == ["conv1", "conv10"]
        assert "2 of 3 groups" in groups.inner_text()
        assert names(page, "Frozen") == ["no rule", "keeps its shape"]
        page.get_by_label("Filter axes").fill("MYSTERY")
        assert names(page, "Frozen") == ["no rule"]
        assert page.locator("figure svg").count() == 2
        assert page.locator(".curve path").count() == 2


def test_the_page_says_what_the_terminal_says(tmp_path: Path) -> None:
    proof = replace(
        REPORT.proof, error=0.0, sizes=("N=2", "N=1"), slices=44, tensors=50, redrawn=2e-6, uncompared=("z, which is empty",)
    )  # fmt: skip
    times = {"before": {"median": 0.0345}, "after": {"median": 0.0279}, "speedup": 1.24, "threads": 0}
    path = tmp_path / "r.html"
    write(path, replace(REPORT, proof=proof, latency={"measured": times}), "model.onnx")
    with opened(path) as page:
        text = page.inner_text("main")
        for part in (
            "exactly equal (allowed 1e-5)", "at N=2; N=1 on CPU", "44 parameters are slices", "50 tensors inside agree",
            "equal within 2.0e-6 with weights drawn anew", "not compared: z, which is empty", "0.0279 of 0.0345 ms",
            "4 GiB", "default",
        ):  # fmt: skip
            assert part in text, part


def test_curves_stay_inside_their_chart_and_bear_names(tmp_path: Path) -> None:
    many = tuple(replace(REPORT.curves[0], group=f"layer{i}.conv", losses=(0.0, 3e-4 * 2**i, 0.3 * 2**i)) for i in range(8))
    path = tmp_path / "r.html"
    write(path, replace(REPORT, curves=many), "model.onnx")
    with opened(path) as page:
        chart = page.locator("section:has(h2:text-is('Sensitivity')) figure svg").first
        frame = chart.bounding_box()
        for curve in chart.locator(".curve path").all():
            box = curve.bounding_box()
            assert frame["y"] <= box["y"]
            assert box["y"] + box["height"] <= frame["y"] + frame["height"]
        colours = {chart.locator(".curve path").nth(i).get_attribute("stroke") for i in range(8)}
        assert len(colours) == 8
        tops = sorted(label.bounding_box()["y"] for label in chart.get_by_text(".conv").all())
        assert len(tops) == 8
        assert all(b - a > 10 for a, b in pairwise(tops))


def test_the_graph_counts_groups_as_the_table_does(tiny_path: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "deps.html"
    assert main(["inspect", str(tiny_path), "--graph", str(path), "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    with opened(path) as page:
        assert page.inner_text("main").split("\n", 1)[1].strip().startswith(f"{len(groups)} groups")


def test_names_do_not_run(tmp_path: Path) -> None:
    group = replace(GROUPS[0], name=EVIL, layers=(EVIL,))
    frozen = FrozenInfo(EVIL, 0, 1, EVIL, EVIL, EVIL)
    curve = replace(REPORT.curves[0], group=EVIL)
    path = tmp_path / "r.html"
    write(path, replace(REPORT, groups=(group,), frozen=(frozen,), notes=(EVIL,), curves=(curve,)), EVIL)
    with opened(path) as page:
        assert names(page, "Groups") == [EVIL]
        assert names(page, "Frozen") == [EVIL]
        assert page.locator("h1").inner_text() == EVIL
        assert page.locator("img").count() == 0


def test_script_that_comes_in_from_outside_is_refused(tmp_path: Path) -> None:
    """The policy names the page's own scripts: one more does not run, even where escaping should ever fail."""
    path = tmp_path / "r.html"
    more = "<script>document.title = 'ran'</script></body>"
    path.write_text(render(to_json(REPORT), "model.onnx").replace("</body>", more), "utf-8")
    with opened(path, refused=("violates the following Content Security Policy directive",)) as page:
        assert page.title() == "model.onnx - onnxprune"


def test_the_command_writes_a_page_with_the_data_of_the_json(tiny_path: Path, tmp_path: Path) -> None:
    out, html = str(tmp_path / "o.onnx"), tmp_path / "r.html"
    assert main([str(tiny_path), out, "--ratio", "0.5", "--calib-samples", "32", "-q", "--report", str(html)]) == 0
    text = html.read_text("utf-8")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.(?!data:,)", text.split("<script>")[0])
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert data["title"] == tiny_path.name
    assert {curve["group"] for curve in data["curves"]} == {group["name"] for group in data["groups"]}
    for curve, group in ((c, g) for c in data["curves"] for g in data["groups"] if c["group"] == g["name"]):
        assert curve["share"] == 1 - group["kept"] / group["units"]
        assert curve["losses"][0] == 0
        assert curve["factor"] > 0
    with opened(html) as page:
        assert page.locator("figure svg").count() == 2
        assert len(names(page, "Groups")) == len(data["groups"])


def test_a_page_without_anything_but_weights(tiny_path: Path, tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    assert main([str(tiny_path), str(tmp_path / "o.onnx"), "--fast", "-q", "--report", str(html)]) == 0
    with opened(html) as page:
        text = page.inner_text("main")
        assert "weights alone decided" in text
        assert "Sensitivity" not in text
