"""The page of a report: it opens from disk, sorts, filters, shows what the JSON says, and runs no name."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import LEGIBLE, browser, faults, opened, shown

import onnxprune
from onnxprune.cli import main
from onnxprune.options import Options
from onnxprune.report import Report, graph_text, headline, to_json, write
from onnxprune.report.documents import PICTURED
from onnxprune.report.page import render
from onnxprune.results import Compared, Cost, CurveInfo, FrozenInfo, GroupInfo, PicturedLayer, Proof, Sweep, SweepPoint

EVIL = "</script><script>alert('ran')</script><img src=x onerror=alert('ran')>"
GROUPS = tuple(GroupInfo(f"conv{i}", (f"conv{i}", "next"), 8 * i, 8 * i, 8 * i - i, 100 * i, 10) for i in (2, 10, 1))
REPORT = Report(
    Cost(1000, 20000, 4_200_000), Cost(500, 8000, 2_100_000), GROUPS,
    (FrozenInfo("w1", 1, 4, "Mystery", "node_7", "no rule"), FrozenInfo("w2", 0, 5, "output", "y", "keeps its shape")),
    Proof(7, 3e-7, 1e-5, (1, 2), ("CPUExecutionProvider",)), Options(memory=4 << 30),
    curves=(CurveInfo("conv2", 16, (0.0, 0.01, 0.1, None), 0.5, 0.3), CurveInfo("conv1", 8, (0.0, 0.2, 0.4), None, 0.0)),
)  # fmt: skip


LONG = "/backbone/encoder/layers.11/TransformerEncoderLayer/self_attention/query_key_value_projection/MatMul"
QUALITY = {
    "metric": "top-1", "before": 0.9465, "after": 0.9275, "drop": 0.019, "interval": (0.0105, 0.028), "samples": 2000,
    "fidelity": {"agreement": 0.964, "cosine": 0.9412, "snr": 9.0}, "data": "/" + "data/" * 40 + "fashion_test.npz",
    "providers": ("CPUExecutionProvider",), "failed": (), "unit": "share", "higher_is_better": True, "warnings": (),
    "fidelity_intervals": {}, "gates": {"max_drop": 0.01, "min_agreement": None, "min_cosine": None, "gate": "interval"},
}  # fmt: skip
LAYERS = (
    PicturedLayer("image", "input"),
    PicturedLayer(LONG, "Conv", (0,), (16, 14), "conv2", (900, 500), {"w": ((16, 1, 3, 3), (14, 1, 3, 3))}),
    PicturedLayer("short", "Conv", (1,), (8, 8), "conv1", (90, 90), {"conv1": ((8, 16), (8, 14))}),
    PicturedLayer("sum", "Add", (2, 1), (16, 14), "conv2"),
    PicturedLayer("head", "Gemm", (3,), (5, 5), "", (9, 9), {"w2": ((5, 16), (5, 14))}),
    PicturedLayer("y", "output", (4,), (5, 5)),
)
DENSE = SweepPoint("original", "", 0.0, 0.9465, 1000, 20000, 4_200_000, 0.0345, 1.0)
POINTS = tuple(
    SweepPoint(f"{c}-{r}", c, r, 0.9 - r, round(1000 * (1 - r)), round(20000 * (1 - r)), 2_000_000, 0.02, 3.5)
    for c in ("obs", "l2", "fpgm") for r in (0.1, 0.2, 0.3)
)  # fmt: skip
SWEEP = Sweep(
    "top-1", QUALITY["data"], DENSE, (*POINTS, SweepPoint("l1-0.5", "l1", 0.5, error=f"no unit may go at {LONG}")),
    {"macs": ("obs-0.3", "obs-0.2"), "parameters": ("obs-0.3",), "latency": ("l2-0.1",)}, Options(),
    unit="share", warnings=(f"{LONG} is doubtful",),
    command=f"onnxprune sweep {LONG}.onnx folder --report sweep.html", files={"model": f"{LONG}.onnx"},
)  # fmt: skip
FULL = replace(
    REPORT, layers=LAYERS, validation={**QUALITY, "failed": (f"top-1 drops by 0.0190 {LONG}",)}, notes=(f"{LONG} looks odd",),
    groups=(*GROUPS, *(replace(GROUPS[0], name=f"{LONG}.weight[{k // 2}]", layers=(LONG,)) for k in range(30))),
    curves=tuple(replace(REPORT.curves[0], group=f"{LONG}.weight[{k // 2}]") for k in range(12)),
    frozen=(*REPORT.frozen, FrozenInfo("constructor", 0, 4, "Mystery", "n", "no rule"), FrozenInfo(f"{LONG}.weight", 0, 4, "Mystery", LONG, f"no rule for {LONG}")),
    command=f"onnxprune {LONG}.onnx out.onnx --nodes-to-exclude {LONG}", files={"model": f"{LONG}.onnx", "calib": LONG},
    latency={"measured": {"before": {"median": 0.0345}, "after": {"median": 0.0279}, "speedup": 1.24, "threads": 0}},
)  # fmt: skip
PAGES = {
    "report": REPORT, "everything, with long names": FULL, "sweep": SWEEP, "a metric of its own": replace(SWEEP, metric="mine", unit="", higher_is_better=False),
    "one point": replace(SWEEP, points=(replace(POINTS[0], metric=DENSE.metric),), fronts={"macs": (POINTS[0].name,), "parameters": ()}),
    "a sweep that failed": replace(SWEEP, points=SWEEP.points[-1:], fronts={"macs": (), "parameters": ()}),
    "a loss": replace(REPORT, validation={**QUALITY, "metric": "loss", "unit": "nats", "higher_is_better": False, "warnings": (LONG,)}),
    "comparison": Compared(REPORT.before, REPORT.after, QUALITY),
}  # fmt: skip


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
        assert page.locator("figure svg").count() == 1
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
        section = page.locator("section:has(h2:text-is('Sensitivity'))")
        chart = section.locator("figure svg").first
        frame = chart.bounding_box()
        for curve in chart.locator(".curve path").all():
            box = curve.bounding_box()
            assert frame["y"] <= box["y"]
            assert box["y"] + box["height"] <= frame["y"] + frame["height"]
        colours = {chart.locator(".curve path").nth(i).get_attribute("stroke") for i in range(8)}
        assert len(colours) == 8
        assert [f"layer{i}.conv" for i in range(8)] == section.locator(".key span").all_inner_texts()[:8]


def test_pages_are_legible_on_screens_and_telephones(tiny_path: Path, tmp_path: Path) -> None:
    """Light and dark: see `browser.LEGIBLE`."""
    pages = {kind: tmp_path / f"{kind}.html" for kind in PAGES}
    for kind, path in pages.items():
        write(path, PAGES[kind], f"{LONG}.onnx")
    pages["graph"] = tmp_path / "deps.html"
    pages["graph"].write_text(graph_text(pages["graph"], onnxprune.inspect(tiny_path).graph, LONG), "utf-8")
    with browser() as started:
        for kind, path in pages.items():
            with shown(started, path) as page:
                assert faults(page) == {}, kind


def test_what_is_not_legible_is_found(tmp_path: Path) -> None:
    """The check of these pages fails where it should: letters, colours, width, pictures."""
    path = tmp_path / "r.html"
    write(path, REPORT, "model.onnx")
    with opened(path) as page:
        for style, word in {
            ".soft { font-size: 11px }": "11 pixels", ":root { --soft: #999 }": "contrast 2.8",
            "h1 { width: 1300px }": "H1", "figure svg { width: 50% }": "not as wide", ".scroll { width: 90px; }": "scrolls sideways",
        }.items():  # fmt: skip
            page.add_style_tag(content=style)
            assert any(word in fault for fault in page.evaluate(LEGIBLE)), style
            page.evaluate("document.querySelector('style:last-of-type').remove()")
        assert page.evaluate(LEGIBLE) == []


def test_long_lines_stretch_no_card(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    for result in (SWEEP, replace(FULL, validation={**QUALITY, "metric": "score.py:" + "a_name_" * 30})):
        write(path, result, "model.onnx")
        with opened(path) as page:
            boxes = [card.bounding_box() for card in page.locator(".figure").all()]
            assert len(boxes) >= 4
            assert max(box["height"] for box in boxes) < 170
            assert max(box["width"] for box in boxes) < 260


def test_what_is_usual_fits_its_card(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write(path, replace(FULL, validation=QUALITY), "model.onnx")
    with opened(path) as page:
        cards = page.locator(".figure")
        assert "was 94.65%, −1.90 points (−2.80 to −1.05)" in cards.nth(3).inner_text().replace("\u00a0", " ")  # noqa: RUF001
        for width in (1280, 1000, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("[...document.querySelectorAll('.figure > *')].every((e) => e.scrollHeight <= e.clientHeight + 1)")


def test_tips_stay_in_the_window(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write(path, FULL, "model.onnx")
    with opened(path) as page:
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            chart = page.locator("section:has(h2:text-is('Sensitivity')) figure svg").first
            chart.scroll_into_view_if_needed()
            assert page.evaluate("folded('one two/three.four' + 'x'.repeat(25), 10)") == "one two/\nthree.\nfourxxxxxx\n" + "x" * 10 + "\n" + "x" * 9
            ends = chart.locator(".curve path").first.bounding_box()
            for x, y in ((ends["x"], ends["y"] + ends["height"]), (ends["x"] + ends["width"], ends["y"])):
                page.mouse.move(x, y)
                tip = chart.locator("[aria-label=tip]")
                assert "query_" in tip.text_content()
                box = tip.bounding_box()
                assert 0 <= box["x"] <= box["x"] + box["width"] <= width


def test_groups_of_one_name_are_told_apart(tmp_path: Path) -> None:
    twins = (GROUPS[0], replace(GROUPS[0], units=99), replace(GROUPS[0]), GROUPS[1])
    wanted = ["conv2 (16 units) #1", "conv2 (99 units)", "conv2 (16 units) #2", "conv10"]
    curves = tuple(replace(REPORT.curves[0], group=g.name, units=g.units) for g in twins)
    path = tmp_path / "r.html"
    write(path, replace(REPORT, groups=twins, curves=curves), "model.onnx")
    with opened(path) as page:
        assert names(page, "Groups") == wanted
        assert page.locator(".bars .name").all_inner_texts() == wanted
        assert page.locator("section:has(h2:text-is('Sensitivity')) .key span").all_inner_texts()[:4] == wanted


def test_the_top_says_what_can_be_quoted_and_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = tmp_path / "r.html"
    write(path, FULL, "model.onnx")
    with opened(path) as page:
        assert page.locator(".lead").inner_text().replace("\u00a0", " ") == headline(FULL)
        text = page.inner_text("main")
        assert all(part in text for part in (str(FULL.command), f"model {LONG}.onnx", "2023-11-14 22:13 UTC", "Gate failed"))


def test_layers_are_chosen_and_found(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write(path, FULL, "model.onnx")
    with opened(path) as page:
        rows = page.locator(".layer")
        assert rows.locator(".count").all_inner_texts() == ["", "16 → 14", "8", "16 → 14", "5", "5"]
        dots = [dot.bounding_box() for dot in page.locator(".layer .dot").all()]
        assert dots[1]["x"] == dots[3]["x"] < dots[2]["x"]  # the branch is beside the stream, which goes on straight
        rows.nth(1).get_by_role("button").click()
        text = rows.nth(1).locator(".about").inner_text()
        assert all(part in text for part in ("14 of 16 stay", "conv2: 14 of 16 units", "sum", "w: 16 x 1 x 3 x 3 → 14 x 1 x 3 x 3", "500 of 900"))
        assert [i for i in range(6) if "same" in rows.nth(i).get_attribute("class")] == [1, 3]
        for row in rows.all():  # also of the one that is open
            dot, line, button = (row.locator(part).first.bounding_box() for part in (".dot", ".flow", "button"))
            assert button["x"] <= dot["x"] < line["x"] + line["width"]
            assert abs(dot["y"] + dot["height"] / 2 - button["y"] - button["height"] / 2) < 1
            assert (line["y"], line["height"]) == (button["y"], button["height"])
        rows.nth(4).get_by_role("button").press("Enter")
        assert page.locator(".about").count() == 1
        text = rows.nth(4).locator(".about").inner_text()
        assert "w2[0]: keeps its shape (output y)" in text
        assert "constructor" not in text  # a name that every object of JavaScript has
        rows.nth(4).get_by_role("button").click()
        assert page.locator(".about").count() == 0
        page.get_by_label("Find a layer").fill("CONV2")
        assert "2 of 6 layers" in page.locator("section:has(h2:text-is('Layers'))").inner_text()
        assert page.locator(".layer.found").count() == 2


@pytest.mark.parametrize("residual", ["conv", "all"])
def test_a_stream_that_crosses_a_norm_says_what_lets_it_go(residual: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    stream = replace(GROUPS[0], kept=GROUPS[0].units, crosses_norm=True)
    write(path, replace(FULL, groups=(stream,), options=Options(residual=residual)), "model.onnx")
    with opened(path) as page:
        page.locator(".layer button").nth(1).click()
        assert ("--residual lets it go" in page.locator(".about").inner_text()) == (residual == "conv")


def test_lines_are_what_flows(tmp_path: Path) -> None:
    """From row to row: what goes on below one row comes in above the next, and ends where it is read last."""
    path = tmp_path / "r.html"
    layers = (*LAYERS[:4], replace(LAYERS[1], sources=(0, 3)), replace(LAYERS[1], sources=()), LAYERS[5])
    write(path, replace(REPORT, layers=layers), "model.onnx")
    with opened(path) as page:
        lines = page.evaluate("lanes(data.layers).rows")
    assert [row["lane"] for row in lines] == [0, 1, 2, 1, 0, 1, 0]
    assert [row["incoming"] for row in lines] == [[], [0], [1], [2, 1], [0, 1], [], [0]]
    assert [row["passing"] for row in lines] == [[], [0], [0, 1], [0], [], [0], []]
    assert [row["below"] for row in lines] == [[0], [0, 1], [0, 1, 2], [0, 1], [0], [0], []]


def test_a_large_model_is_drawn_in_part(tmp_path: Path) -> None:
    """The page stays as large as it says, and names what it leaves out; JSON has all."""
    layers = (LAYERS[0], *(replace(LAYERS[1], node=f"{LONG}_{i}", sources=(i,)) for i in range(PICTURED + 500)))
    path = tmp_path / "r.html"
    write(path, replace(REPORT, layers=layers), "model.onnx")
    assert path.stat().st_size < 1_200_000
    with opened(path) as page:
        assert page.locator(".layer").count() == PICTURED
        assert f"the first {PICTURED:,} of {PICTURED + 501:,} layers" in page.inner_text("main")
    assert len(to_json(replace(REPORT, layers=layers))["layers"]) == PICTURED + 501


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
    layer = PicturedLayer(EVIL, EVIL, (), (2, 1), EVIL, (1, 1), {EVIL: ((2,), (1,))})
    path = tmp_path / "r.html"
    write(path, replace(
        REPORT, groups=(group,), frozen=(frozen,), notes=(EVIL,), curves=(curve,), layers=(layer,), command=EVIL, files={"model": EVIL},
    ), EVIL)  # fmt: skip
    with opened(path) as page:
        page.locator(".layer button").click()
        assert EVIL in page.locator(".about").inner_text()
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
    assert data["command"] == f"onnxprune {tiny_path} {out} --ratio 0.5 --calib-samples 32 -q --report {html}"
    assert data["files"] == {"model": str(tiny_path), "pruned": out}
    with opened(html) as page:
        assert page.locator("figure svg").count() == 1
        assert len(names(page, "Groups")) == len(data["groups"])
        assert page.locator(".layer").count() == len(data["layers"])


def test_a_sweep_and_a_report_of_python_say_of_which_model_they_are(tiny_path: Path, tmp_path: Path) -> None:
    html, folder = tmp_path / "s.html", tmp_path / "points"
    asked = ["sweep", str(tiny_path), str(folder), "--ratios", "0.3", "--fast", "--jobs", "1", "-q", "--report", str(html)]
    assert main(asked) == 0
    result = onnxprune.prune(tiny_path, fast=True)
    again = result.report.save(tmp_path / "r.html")
    with browser() as started:
        with shown(started, html) as page:
            assert shlex.join(["onnxprune", *asked]) in page.inner_text("main").replace("\n", "")
            assert page.locator(".lead").inner_text().startswith("tiny.onnx pruned: ")
        with shown(started, again) as page:
            assert page.locator("h1").inner_text() == "tiny.onnx"
            assert page.locator(".lead").inner_text().startswith("tiny.onnx keeps ")
            assert "Command" not in page.inner_text("main")


def test_a_page_without_anything_but_weights(tiny_path: Path, tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    assert main([str(tiny_path), str(tmp_path / "o.onnx"), "--fast", "-q", "--report", str(html)]) == 0
    with opened(html) as page:
        text = page.inner_text("main")
        assert "weights alone decided" in text
        assert "Sensitivity" not in text
