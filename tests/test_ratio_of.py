"""Shares of single groups by name: held in every scope, the rest as it would be, the words the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph, inputs, pruned, shapes
from onnx import ModelProto
from test_allocate import attention
from test_cli import fails
from test_limits import SIZES, net

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import Plan

Captured = pytest.CaptureFixture[str]
CALIB = [inputs(net(), 24, 1)]
MODELS = Path(__file__).parents[1] / "models"


def widths(model: ModelProto | None = None, **options: Any) -> dict[str, int]:
    """Filters of every layer of `net` that are left."""
    inputs = {} if options.get("fast") else {"calib": CALIB}
    found = shapes(api.prune(model or net(), **inputs, **options))
    return {name: found[name][0] for name in SIZES}


# -- every scope by every criterion ---------------------------------------------------------------------------------------

WAYS: list[dict[str, Any]] = [
    *({"fast": True, "scope": scope, "criterion": criterion}
      for scope in ("local", "global", "pq") for criterion in ("l1", "l2", "random", "fpgm", "lamp")),
    *({"scope": scope, "criterion": criterion}
      for scope in ("local", "global", "sensitivity", "pq") for criterion in ("obs", "wanda", "l2")),
    {"fast": True, "reconstruct": "merge"}, {"scope": "sensitivity", "effort": "low"},
]  # fmt: skip
SHARES = {"w1": 0.25, "w3": 0.75}
FIXED = {"w1": 15, "w3": 3}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_exactly_the_share_goes_in_every_scope(way: Mapping[str, Any]) -> None:
    found = widths(ratio=0.5, ratio_of=SHARES, **way)
    assert {name: found[name] for name in FIXED} == FIXED
    assert found["w0"] == found["w2"] < SIZES["w0"], "the rest follows the ratio"
    if way.get("scope", "local") == "local":
        assert found["w0"] == widths(ratio=0.5, **way)["w0"] == 8


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_nothing_goes_of_what_has_none(way: Mapping[str, Any]) -> None:
    found = widths(ratio=0.5, ratio_of={"*": 0.0, "w1": 0.5}, **way)
    assert found == SIZES | {"w1": 10}


@pytest.mark.parametrize(
    ("multiple", "share", "left"),
    [(1, 0.28, 14), (4, 0.28, 16), (8, 0.5, 8), (8, 0.0, 20), (4, 0.05, 20), (8, 0.7, 8), (1, 0.33, 13)],
)
@pytest.mark.parametrize("scope", ["local", "global", "pq"])
def test_the_share_is_rounded_as_asked(multiple: int, share: float, left: int, scope: Any) -> None:
    """Of 20 filters; of 20 in steps of 8 only 16 and 8 are multiples, and where nothing is to go nothing does."""
    assert widths(fast=True, scope=scope, round_to=multiple, ratio_of={"w1": share})["w1"] == left


@pytest.mark.parametrize("scope", ["local", "global", "sensitivity", "pq"])
@pytest.mark.parametrize("of", ["macs", "params"])
def test_the_rest_takes_up_what_is_needed(of: Any, scope: Any) -> None:
    """The model's own share stays where it was, whether the fixed groups give more or less than theirs."""
    whole = getattr(api.inspect(net()).cost, {"macs": "macs", "params": "parameters"}[of])
    for share in (0.1, 0.5):
        result = api.prune(net(), of=of, ratio=0.4, scope=scope, ratio_of={"w1": share}, calib=CALIB, criterion="l2")
        assert shapes(result)["w1"][0] == round((1 - share) * 20)
        after = getattr(result.report.after, {"macs": "macs", "params": "parameters"}[of])
        assert after / whole == pytest.approx(0.6, abs=0.06), share


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"of": "macs", "ratio": 0.9, "ratio_of": {"*": 0.2, "w3": 0.1}}, "ratio=0.9 of the MACs cannot be reached"),
        ({"of": "params", "ratio": 0.97, "ratio_of": {"w1": 0.1, "w3": 0.0}}, "raise its shares, or lower ratio"),
        ({"of": "macs", "ratio": 0.1, "ratio_of": {"w1": 0.6}}, "more than ratio=0.1; lower its shares"),
        ({"of": "macs", "ratio": 0.9, "ratio_of": {"*": 0.0}}, "at most 0.000 can go"),
    ],
)
@pytest.mark.parametrize("scope", ["local", "global", "pq"])
def test_a_target_that_cannot_be_reached_is_said(options: dict[str, Any], says: str, scope: Any) -> None:
    with pytest.raises(onnxprune.UsageError, match=says):
        api.prune(net(), fast=True, scope=scope, **options)


def test_the_search_for_the_largest_cut_keeps_the_shares() -> None:
    result = api.largest(net(), lambda r: r.report.after.macs > 0.5 * r.report.before.macs, fast=True, ratio_of=SHARES)
    found = shapes(result)
    assert {name: found[name][0] for name in FIXED} == FIXED
    assert 0.5 < result.report.after.macs / result.report.before.macs < 0.65


def test_what_weights_alone_would_take_in_its_place_has_the_shares() -> None:
    """Where the refit is worse than weights alone, their plan is taken: of bad inputs, here."""
    flat = [{"x": np.ones((24, 3, 8, 8), np.float32) * np.arange(24, dtype=np.float32)[:, None, None, None] * 1e-3}]
    found = shapes(api.prune(net(), ratio=0.5, ratio_of=SHARES, calib=flat))
    assert {name: found[name][0] for name in FIXED} == FIXED


# -- heads ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"ratio_of": {"wq": 0.5, "wk": 0.5, "wv": 0.5}}, (8, 8)),  # two heads of four, and no more
        ({"ratio_of": {"wv": 0.0}}, (12, 16)),  # no head may go, so that keys lose inside them
        ({"ratio_of": {"wq": 0.25, "wv": 0.5}}, (12, 9)),  # one head, and one value of four in those that stay: 9 is nearest to 8
        ({"ratio_of": {"wq": 0.2, "wv": 0.2}}, (12, 12)),
        ({"ratio_of": {"wq": 0.5, "wv": 0.0}, "heads": False}, (8, 16)),
    ],
)
def test_of_heads_the_share_of_units_goes(options: dict[str, Any], left: tuple[int, int]) -> None:
    """Four heads of four channels: queries with keys, and values."""
    after = shapes(pruned(attention(), ratio=0.25, **options))
    assert (after["wq"][1], after["wv"][1]) == left
    assert after["wk"] == after["wq"]


# -- names ---------------------------------------------------------------------------------------------------------------

BODY = """
    a = Conv(x, stem) n = BatchNormalization(a, gain, beta, mean, var) b = Relu(n)
    c = Conv(b, "up.w", "up.b") d = Relu(c) e = Conv(d, "down.w") s = Add(e, b)
    t = Transpose<perm=[1,0,2,3]>(turned) f = Conv(s, t) y = Conv(f, last)
"""


def named() -> ModelProto:
    """A stream of 8 channels, a layer of 12 beside it, one of 10 behind it whose weight is turned before it is read."""
    sizes: dict[str, tuple[int, ...]] = {
        "stem": (8, 3, 1, 1), "up.w": (12, 8, 1, 1), "up.b": (12,), "down.w": (8, 12, 1, 1), "turned": (8, 10, 1, 1),
        "last": (4, 10, 1, 1), **dict.fromkeys(("gain", "beta", "mean", "var"), (8,)),
    }  # fmt: skip
    body = BODY.replace('"', "").replace("up.", "up_").replace("down.", "down_")
    model = graph("(float[N,3,4,4] x) => (float[N,4,4,4] y)", body, **{n.replace(".", "_"): s for n, s in sizes.items()})
    for node in model.graph.node:
        node.name = f"net.{node.output[0]}"
    return model


WHOLE = {"stem": 8, "up_w": 12, "turned": 10}


@pytest.mark.parametrize(
    ("shares", "left"),
    [
        ({"up_w": 0.5}, {"up_w": 6}),  # what it makes, not what it reads
        ({"up_b": 0.5}, {"up_w": 6}), ({"net.c": 0.5}, {"up_w": 6}), ({"net.d": 0.5}, {"up_w": 6}),
        ({"up_w[0]": 0.5}, {"up_w": 6}), ({"down_w[1]": 0.5}, {"up_w": 6}), ({"down_w": 0.5}, {"stem": 4}),
        ({"up_w[1]": 0.5}, {"stem": 4}), ({"gain": 0.5}, {"stem": 4}), ({"net.s": 0.5}, {"stem": 4}),
        ({"turned": 0.5}, {"turned": 5}), ({"net.t": 0.5}, {"turned": 5}), ({"net.f": 0.5}, {"turned": 5}),
        ({"up*": 0.5}, {"up_w": 6}), ({"re:^up": 0.5}, {"up_w": 6}), ({"*w": 0.5}, {"up_w": 6, "stem": 4}),
        ({"re:\\[1\\]$": 0.5}, {"up_w": 6, "stem": 4, "turned": 5}),
        ({"*": 0.5, "up_w": 0.25}, {"up_w": 9, "stem": 4, "turned": 5}),
        ({"up_w": 0.25, "*": 0.5}, {"up_w": 9, "stem": 4, "turned": 5}),  # a full name goes before patterns
        ({"*": 0.5, "up*": 0.25}, {"up_w": 9, "stem": 4, "turned": 5}),  # of patterns the last one counts
        ({"stem": 0.5, "down_w": 0.5}, {"stem": 4}),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_name_stands_for(shares: dict[str, float], left: dict[str, int]) -> None:
    found = shapes(pruned(named(), ratio=0.01, ratio_of=shares))
    assert {"stem": found["stem"][0], "up_w": found["up_w"][0], "turned": found["turned"][1]} == WHOLE | left


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ratio_of": {"up_q": 0.5}}, "ratio_of up_q=0.5: no node, parameter or group has such a name; did you mean up_"),
    ({"ratio_of": {"zzz": 0.5}}, "ratio_of zzz=0.5: no node, parameter or group has such a name; `onnxprune inspect` lists"),
    ({"ratio_of": {"up_w": 0.5, "q*": 0.2}}, "ratio_of q*=0.2: no node"),
    ({"ratio_of": {"last": 0.5}}, "ratio_of last=0.5: nothing that it makes may go; name what it reads, turned[1]"),
    ({"ratio_of": {"stem": 0.5, "down_w": 0.25}}, "ratio_of stem=0.5 and down_w=0.25 name units that go together"),
    ({"ratio_of": {"up*": 0.5, "u*": 0.2, "stem": 0.1}}, "ratio_of up*=0.5 says nothing, as u*=0.2 comes later"),
    ({"ratio_of": {"up*": 0.5, "*": 0.2}}, "ratio_of up*=0.5 says nothing, as *=0.2 comes later"),
    ({"ratio_of": {"re:[": 0.5}}, "ratio_of re:[: not a regular expression"),
    ({"ratio_of": {"stem": 0.5}, "residual": "none"}, "ratio_of stem=0.5: residual channels stay; leave out residual='none'"),
    ({"ratio_of": {"stem": 0.5}, "max_ratio": 0.2}, "ratio_of stem=0.5 is more than max_ratio=0.2 lets go"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), WRONG, ids=lambda x: str(x)[:60])
def test_wrong_names(options: dict[str, Any], says: str, tmp_path: Path, capsys: Captured) -> None:
    """In Python and on the command line; the same with what flags are called there."""
    with pytest.raises(onnxprune.UsageError) as refused:
        api.prune(named(), **options, fast=True)
    assert says in str(refused.value)
    onnx.save(named(), tmp_path / "in.onnx")
    words = ["--ratio-of", *(f"{name}={share}" for name, share in options["ratio_of"].items())]
    words += ["--no-residual"] if "residual" in options else []
    words += ["--max-ratio", "0.2"] if "max_ratio" in options else []
    for command in ([tmp_path / "in.onnx", tmp_path / "out.onnx"], ["sweep", tmp_path / "in.onnx", tmp_path / "s"]):
        line = fails(tmp_path, capsys, 2, *command, "--fast", *words)
        assert line == f"onnxprune: error: {refused.value.message}\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1.0}, "a=1"), ({"a": -0.1}, "a=-0.1"), ({"a": float("nan")}, "a=nan"), ({"": 0.5}, "=0.5"),
        ("a=0.5", "a"), ({"a": "0.5"}, "a=half"), ({"a": True}, "a=true"), ({3: 0.5}, "0.5"), ([("a", 0.5)], "a:0.5"),
    ],
)  # fmt: skip
def test_wrong_shares_have_the_same_words(value: Any, text: str, tmp_path: Path, capsys: Captured) -> None:
    words = "is not a name and the share of its units to remove, 0 to below 1, as in 'encoder.*=0.5'"
    with pytest.raises(onnxprune.UsageError) as refused:
        api.prune(net(), ratio_of=value)
    assert str(refused.value) == f"ratio_of={value!r} {words}"
    line = fails(tmp_path, capsys, 2, "in.onnx", "out.onnx", "--ratio-of", text)
    assert f"argument --ratio-of: {text!r} {words}" in line


def test_a_name_with_an_equals_sign(tmp_path: Path) -> None:
    model = named()
    model.graph.node[4].name = "a=b"
    onnx.save(model, tmp_path / "in.onnx")
    assert main([str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--fast", "-q", "--ratio-of", "a=b=0.5"]) == 0
    assert shapes(onnx.load(tmp_path / "out.onnx"))["up_w"][0] == 6


# -- where it is said ----------------------------------------------------------------------------------------------------


def test_it_is_in_the_plan_the_report_and_the_table(tmp_path: Path, capsys: Captured) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    plan, report, out = (str(tmp_path / name) for name in ("p.json", "r.json", "out.onnx"))
    flags = ["--fast", "--ratio-of", "w1=0.25", "*[3]=0.75", "--save-plan", plan, "--report", report]
    assert main([str(tmp_path / "in.onnx"), out, *flags]) == 0
    table = capsys.readouterr().out
    assert "asked" in table
    data = json.loads(Path(report).read_text())
    assert data["options"]["ratio_of"] == {"w1": 0.25, "*[3]": 0.75}
    assert {g["name"]: g["asked"] for g in data["groups"]} == {"w0[0]": [], "w1[0]": [0.25], "w3[0]": [0.75]}
    assert Plan.load(plan).ratio_of == {"w1": 0.25, "*[3]": 0.75}
    again = str(tmp_path / "again.onnx")
    assert main([str(tmp_path / "in.onnx"), again, "--fast", "-q", "--plan", plan]) == 0
    assert Path(again).read_bytes() == Path(out).read_bytes()
    assert "ratio_of" not in api.plan(net(), fast=True).to_json()


@pytest.mark.parametrize(
    "text", ['ratio-of = ["w1=0.25", "w3=0.75"]', "[ratio-of]\nw1 = 0.25\nw3 = 0.75", 'ratio_of = {w1 = 0.25, "w3" = 0.75}']
)
def test_from_a_file_of_flags(text: str, tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    (tmp_path / "p.toml").write_text(f"fast = true\n{text}")
    command = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "-q", "--config", str(tmp_path / "p.toml")]
    assert main(command) == 0
    found = shapes(onnx.load(tmp_path / "out.onnx"))
    assert {name: found[name][0] for name in FIXED} == FIXED
    assert main([*command, "--ratio-of", "w1=0.5"]) == 0
    assert shapes(onnx.load(tmp_path / "out.onnx"))["w1"][0] == 10, "a flag that is given wins"


@pytest.mark.slow
def test_in_a_sweep(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    flags = ["--fast", "--ratios", "0.3", "0.6", "--jobs", "1", "--save-models", "-q", "--ratio-of", "w1=0.25"]
    assert main(["sweep", str(tmp_path / "in.onnx"), str(tmp_path / "s"), *flags]) == 0
    found = {path.stem: shapes(onnx.load(path)) for path in (tmp_path / "s").glob("*.onnx")}
    assert {name: (s["w1"][0], s["w0"][0]) for name, s in found.items()} == {"l2-0.3": (15, 11), "l2-0.6": (15, 6)}


def test_everything_kept_says_which_flag_keeps_it(tmp_path: Path, capsys: Captured) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    line = fails(tmp_path, capsys, 3, tmp_path / "in.onnx", tmp_path / "o.onnx", "--fast", "--ratio-of", "*=0")
    assert "leave out --ratio-of" in line


# -- names in tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny_conv", "tiny_attention", "cifar_mobile"])
def test_every_unit_is_made_by_a_layer_and_every_group_has_its_own_name(model: str) -> None:
    groups = analysed(Model.load(MODELS / f"{model}.onnx"), Options(), Clock())
    layers = groups.layers
    fresh = np.unique(np.concatenate([layers.made[groups.trace.nodes[k].name].fresh for k in layers.read]))
    assert fresh.tolist() == np.flatnonzero(groups.prunable).tolist()
    assert len(set(layers.groups)) == len(layers.groups)


def test_inspect_lists_every_name_that_may_be_typed(tmp_path: Path, capsys: Captured) -> None:
    onnx.save(named(), tmp_path / "in.onnx")
    assert main(["inspect", str(tmp_path / "in.onnx"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = {row["node"]: row for row in data["layers"]}
    assert rows["net.c"] == {
        "node": "net.c", "op_type": "Conv", "parameters": [["up_w", [12, 8, 1, 1]], ["up_b", [12]]],
        "makes": ["up_w[0]"], "reads": ["stem[0]"],
    }  # fmt: skip
    assert rows["net.f"]["parameters"] == [["turned", [8, 10, 1, 1]]]
    assert rows["net.y"]["makes"] == []
    assert main(["inspect", str(tmp_path / "in.onnx")]) == 0
    text = capsys.readouterr().out
    for word in ("net.c", "up_w", "12x8x1x1", "up_w[0]", "none that may go"):
        assert word in text
    for row in data["layers"]:  # and each of them can be typed
        for name in (row["node"], *(name for name, _ in row["parameters"]), *row["makes"]):
            if row["makes"]:
                assert api.plan(named(), fast=True, ratio_of={name: 0.5}).groups
            api.inspect(named(), nodes_to_exclude=name)


def test_the_tables_of_inspect_fit_into_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    from onnxprune.report import print_inspection

    for model in ("fashion_resnet", "tiny_attention"):
        out = StringIO()
        print_inspection(api.inspect(MODELS / f"{model}.onnx"), Console(file=out, width=100, markup=False), False)
        rows = [line for line in out.getvalue().splitlines() if line.startswith(("/st", "onnx::", "MatMul", "qkv"))]
        assert len(rows) > 3
        assert all(line.split()[-1] != "" and len(line) <= 100 for line in rows)
