"""Mistakes made on purpose: each ends in one line on stderr that says what is wrong and what to do, with the right exit
code, and neither makes a file nor changes one.

A row is what is wrong, the command as it is typed, its exit code, and words that must be in the line. The commands run
in a folder with the files of `FILES`; whoever needs another one adds it there. Rows of one subject are one list."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from graphs import graph
from onnx import ModelProto
from test_cli import contents

import onnxprune
from onnxprune.cli import main

SHORTCUT = """
    a = Conv<pads=[1,1,1,1]>(image, stem_weight, stem_bias) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, conv1_weight, conv1_bias)
    d = Relu(c) e = Conv<pads=[1,1,1,1]>(d, conv2_weight) s = Add(e, b) f = GlobalAveragePool(s) g = Flatten(f)
    logits = Gemm<transB=1>(g, head_weight, head_bias)
"""


def network() -> ModelProto:
    """A stream of 16 channels, a layer of 24 beside it, a classifier; nodes are named net/<output>."""
    model = graph(
        "(float[N,3,8,8] image) => (float[N,5] logits)", SHORTCUT, stem_weight=(16, 3, 3, 3), stem_bias=(16,),
        conv1_weight=(24, 16, 3, 3), conv1_bias=(24,), conv2_weight=(16, 24, 3, 3), head_weight=(5, 16), head_bias=(5,),
    )  # fmt: skip
    for node in model.graph.node:
        node.name = f"net/{node.output[0]}"
    return model


def transformer() -> ModelProto:
    """A normalised stream of 32, which stays unless --residual is given, and a layer of 48 beside it."""
    body = "n = LayerNormalization(x, gain, bias) u = MatMul(n, up) r = Relu(u) d = MatMul(r, down) s = Add(d, x0) y = MatMul(s, out)"
    return graph(
        "(float[N,6,16] t) => (float[N,6,3] y)", f"x = MatMul(t, into) x0 = Identity(x) {body}", into=(16, 32), gain=(32,),
        bias=(32,), up=(32, 48), down=(48, 32), out=(32, 3),
    )  # fmt: skip


def plan(**changes: Any) -> str:
    """A plan of the network as text, with other entries in place of its own."""
    return json.dumps(onnxprune.plan(network(), fast=True).to_json() | changes)


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    """A plan of the network as text whose first removal of conv1_weight[0] is changed."""
    data = json.loads(plan())
    change(next(r for r in data["groups"]["conv1_weight[0]"] if r["parameter"] == "conv1_weight"))
    return json.dumps(data)


FILES: dict[str, Callable[[], str | bytes]] = {
    "m.onnx": lambda: network().SerializeToString(),
    "lm.onnx": lambda: transformer().SerializeToString(),
    "plan.json": plan,
    "lm.json": lambda: json.dumps(onnxprune.plan(transformer(), fast=True).to_json()),
    "old.json": lambda: plan(version=1),
    "list.json": lambda: "[]",
    "cut.json": lambda: plan()[:-20],
    "groups.json": lambda: plan(groups=[]),
    "ratio.json": lambda: plan(ratio="a third"),
    "scope.json": lambda: plan(scope=3),
    "shares.json": lambda: plan(ratio_of=[0.5]),
    "everything.json": lambda: edited(lambda r: r.update(remove=list(range(24)))),
    "far.json": lambda: edited(lambda r: r.update(remove=[24])),
    "negative.json": lambda: edited(lambda r: r.update(remove=[-1])),
    "half.json": lambda: edited(lambda r: r.update(remove=[0.5])),
    "axis.json": lambda: edited(lambda r: r.update(axes=[2])),
    "name.json": lambda: edited(lambda r: r.update(parameter="conv1_wieght")),
    "noname.json": lambda: edited(lambda r: r.pop("parameter")),
    "twice.json": lambda: plan().replace('"groups": {', '"groups": {"conv1_weight[0]": [], ', 1),
    "shares.toml": lambda: '[ratio-of]\n"conv1*" = 1.5\n',
    "many.toml": lambda: "ratio-of = 0.5\n",
    "shapes.toml": lambda: "overwrite-input-shape = {image = [1, 3, 8, 8]}\n",
    "excluded.toml": lambda: "nodes-to-exclude = true\n",
}


class Mistake(NamedTuple):
    """See the module."""

    what: str
    command: str
    code: int
    says: str


CUT = "m.onnx out.onnx --fast"
SHARE = "is not a name and the share of its units to remove, 0 to below 1, as in 'encoder.*=0.5'"

RATIOS = [
    Mistake("a share without a name", f"{CUT} --ratio-of 0.5", 2, SHARE),
    Mistake("a name without a share", f"{CUT} --ratio-of conv1_weight", 2, SHARE),
    Mistake("nothing at all", f"{CUT} --ratio-of", 2, "expected at least one argument"),
    Mistake("a share of all", f"{CUT} --ratio-of conv1_weight=1", 2, SHARE),
    Mistake("per cent", f"{CUT} --ratio-of conv1_weight=50%", 2, SHARE),
    Mistake("a share above one", f"{CUT} --ratio-of conv1_weight=50", 2, SHARE),
    Mistake("a share below none", f"{CUT} --ratio-of conv1_weight=-0.1", 2, SHARE),
    Mistake("no number", f"{CUT} --ratio-of conv1_weight=half", 2, SHARE),
    Mistake("a colon", f"{CUT} --ratio-of conv1_weight:0.5", 2, SHARE),
    Mistake("nan", f"{CUT} --ratio-of conv1_weight=nan", 2, SHARE),
    Mistake("an empty name", f"{CUT} --ratio-of =0.5", 2, SHARE),
    Mistake("another flag", f"{CUT} --ratios-of conv1_weight=0.5", 2, "did you mean '--ratio-of'?"),
    Mistake("a name of nothing", f"{CUT} --ratio-of encoder.layer.0=0.5", 2, "`onnxprune inspect` lists the names"),
    Mistake("a glob of nothing", f"{CUT} --ratio-of 'encoder.*=0.5'", 2, "no node, parameter or group has such a name"),
    Mistake("a mistyped name", f"{CUT} --ratio-of conv1_wieght=0.5", 2, "did you mean conv1_weight"),
    Mistake("a mistyped node", f"{CUT} --ratio-of net.c=0.5", 2, "did you mean net/c"),
    Mistake("a mistyped group", f"{CUT} --ratio-of 'conv3_weight[0]=0.5'", 2, "conv1_weight[0]"),
    Mistake("capitals", f"{CUT} --ratio-of CONV1_WEIGHT=0.5", 2, "`onnxprune inspect` lists the names"),
    Mistake("one of two names is of nothing", f"{CUT} --ratio-of conv1_weight=0.5 x=0.2", 2, "--ratio-of x=0.2: no node"),
    Mistake("no regular expression", f"{CUT} --ratio-of 're:(=0.5'", 2, "not a regular expression"),
    Mistake("the last layer", f"{CUT} --ratio-of head_weight=0.5", 2, "nothing that it makes may go; name what it reads, stem_weight[0]"),
    Mistake("the classifier's node", f"{CUT} --ratio-of net/logits=0.5", 2, "stem_weight[0]"),
    Mistake("what is excluded", f"{CUT} --ratio-of conv1_weight=0.5 --nodes-to-exclude conv1_weight", 2, "nothing that it makes may go"),
    Mistake("two shares of one name", f"{CUT} --ratio-of conv1_weight=0.5 conv1_weight=0.2", 2, "says two things of conv1_weight: 0.5 and 0.2"),
    Mistake("two shares of one group", f"{CUT} --ratio-of stem_weight=0.5 conv2_weight=0.2", 2, "go together; give them one share"),
    Mistake("a layer and its node", f"{CUT} --ratio-of net/c=0.5 conv1_weight=0.2", 2, "go together; give them one share"),
    Mistake("patterns in the wrong order", f"{CUT} --ratio-of 'conv1*=0.5' '*=0.2'", 2, "put it last"),
    Mistake("a stream that stays", f"{CUT} --no-residual --ratio-of stem_weight=0.5", 2, "leave out --no-residual"),
    Mistake("a normalised stream", "lm.onnx out.onnx --fast --ratio-of into=0.5", 2, "--residual lets them go"),
    Mistake("more than --max-ratio", f"{CUT} --ratio-of conv1_weight=0.5 --max-ratio 0.4", 2, "more than --max-ratio 0.4"),
    Mistake("everything is to stay", f"{CUT} --ratio-of '*=0'", 3, "leave out --ratio-of"),
    Mistake("less than one unit", f"{CUT} --ratio-of '*=0.001'", 3, "leave out --ratio-of"),
    Mistake("MACs out of reach", f"{CUT} --of macs --ratio 0.8 --ratio-of conv1_weight=0.1 stem_weight=0.1", 2, "at most 0.194 can go"),
    Mistake("parameters out of reach", f"{CUT} --of params --ratio 0.99 --ratio-of stem_weight=0", 2, "cannot be reached"),
    Mistake("shares above the target", f"{CUT} --of macs --ratio 0.1 --ratio-of conv1_weight=0.5", 2, "more than --ratio 0.1"),
    Mistake("with a plan", "m.onnx out.onnx --plan plan.json --ratio-of conv1_weight=0.5", 2, "leave out --ratio-of"),
    Mistake("in a sweep", "sweep m.onnx out --fast --ratio-of x=0.5", 2, "--ratio-of x=0.5: no node"),
    Mistake("inspect has no shares", "inspect m.onnx --ratio-of conv1_weight=0.5", 2, "--ratio-of"),
    Mistake("a table with a wrong share", f"{CUT} --config shares.toml", 2, "'conv1*=1.5' is not a name and the share"),
    Mistake("a file with one number", f"{CUT} --config many.toml", 2, SHARE),
]  # fmt: skip

EXCLUSIONS = [
    Mistake("a node of nothing", f"{CUT} --nodes-to-exclude Conv_0", 2, "no node, parameter or group has such a name"),
    Mistake("a mistyped parameter", f"{CUT} --nodes-to-exclude head_wieght", 2, "did you mean head_weight"),
    Mistake("a mistyped group", f"{CUT} --nodes-to-exclude 'conv1_wieght[0]'", 2, "did you mean conv1_weight"),
    Mistake("one of two of nothing", f"{CUT} --nodes-to-exclude net/c net/x", 2, "--nodes-to-exclude net/x"),
    Mistake("names with a comma", f"{CUT} --nodes-to-exclude net/c,net/e", 2, "no node, parameter or group"),
    Mistake("a glob of nothing", f"{CUT} --nodes-to-exclude 'layer4*'", 2, "`onnxprune inspect` lists the names"),
    Mistake("an output", f"{CUT} --nodes-to-exclude logits", 2, "did you mean net/logits?"),
    Mistake("an empty name", f"{CUT} --nodes-to-exclude ''", 2, "no node, parameter or group"),
    Mistake("no value", f"{CUT} --nodes-to-exclude", 2, "expected at least one argument"),
    Mistake("no regular expression", f"{CUT} --nodes-to-exclude 're:*'", 2, "not a regular expression"),
    Mistake("a module of torch", f"{CUT} --op-types-to-exclude Linear", 2, "the model has no such operator"),
    Mistake("small letters", f"{CUT} --op-types-to-exclude conv", 2, "did you mean Conv?"),
    Mistake("a node's name as a type", f"{CUT} --op-types-to-exclude net/c", 2, "the model has no such operator"),
    Mistake("a glob of types", f"{CUT} --op-types-to-exclude 'Conv*'", 2, "did you mean Conv?"),
    Mistake("everything", f"{CUT} --nodes-to-exclude '*'", 3, "everything is excluded by --nodes-to-exclude"),
    Mistake("every type with weights", f"{CUT} --op-types-to-exclude Conv Gemm", 3, "excluded by --op-types-to-exclude"),
    Mistake("true in a file", f"{CUT} --config excluded.toml", 2, "nodes-to-exclude takes a value"),
    Mistake("in a sweep", "sweep m.onnx out --fast --op-types-to-exclude conv", 2, "did you mean Conv?"),
    Mistake("in inspect", "inspect m.onnx --nodes-to-exclude conv1_wieght", 2, "did you mean conv1_weight"),
    Mistake("with a plan that removes it", "m.onnx out.onnx --fast --plan plan.json --nodes-to-exclude net/c", 2, "must stay"),
]  # fmt: skip

SHAPES = [
    Mistake("an input that there is not", f"{CUT} --overwrite-input-shape input:1,3,8,8", 2, "image"),
    Mistake("no sizes", f"{CUT} --overwrite-input-shape image", 2, "is not NAME:SIZES, such as image:1,3,224,224"),
    Mistake("sizes without a name", f"{CUT} --overwrite-input-shape 1,3,8,8", 2, "is not NAME:SIZES"),
    Mistake("an x between sizes", f"{CUT} --overwrite-input-shape image:1x3x8x8", 2, "is not NAME:SIZES"),
    Mistake("an equals sign", f"{CUT} --overwrite-input-shape image=1,3,8,8", 2, "is not NAME:SIZES"),
    Mistake("a word for a size", f"{CUT} --overwrite-input-shape image:N,3,8,8", 2, "leaves a dimension open"),
    Mistake("a size below -1", f"{CUT} --overwrite-input-shape image:-2,3,8,8", 2, "leaves a dimension open"),
    Mistake("half a size", f"{CUT} --overwrite-input-shape image:1.5,3,8,8", 2, "is not NAME:SIZES"),
    Mistake("too few sizes", f"{CUT} --overwrite-input-shape image:1,3,8", 2, "give 4 sizes"),
    Mistake("too many sizes", f"{CUT} --overwrite-input-shape image:1,1,3,8,8", 2, "give 4 sizes"),
    Mistake("channels last", f"{CUT} --overwrite-input-shape image:1,8,8,3", 2, "3, not 8"),
    Mistake("another picture size", f"{CUT} --overwrite-input-shape image:1,3,32,32", 2, "8, not 32"),
    Mistake("a parameter", f"{CUT} --overwrite-input-shape conv1_weight:24,16,3,3", 2, "image"),
    Mistake("an output", f"{CUT} --overwrite-input-shape logits:1,5", 2, "image"),
    Mistake("two shapes of one input", f"{CUT} --overwrite-input-shape image:1,3,8,8 image:2,3,8,8", 2, "says two things of image"),
    Mistake("a table in a file", f"{CUT} --config shapes.toml", 2, "is not NAME:SIZES"),
    Mistake("in inspect", "inspect m.onnx --overwrite-input-shape picture:1,3,8,8", 2, "image"),
    Mistake("a batch too large", f"{CUT} --overwrite-input-shape image:100000000,3,8,8", 4, "smaller inputs"),
]  # fmt: skip

REPLAY = "m.onnx out.onnx --fast --plan"
PLANS = [
    Mistake("a plan of another graph", f"{REPLAY} lm.json", 2, "made of another graph"),
    Mistake("the same by force", f"{REPLAY} lm.json --force-plan", 2, "is not in this model"),
    Mistake("a model", f"{REPLAY} m.onnx", 2, "not a plan, it is no JSON"),
    Mistake("no file", f"{REPLAY} no.json", 2, "no.json does not exist"),
    Mistake("an old version", f"{REPLAY} old.json", 2, "version 1"),
    Mistake("a list", f"{REPLAY} list.json", 2, "not a plan"),
    Mistake("a file that was cut off", f"{REPLAY} cut.json", 2, "no JSON"),
    Mistake("groups as a list", f"{REPLAY} groups.json", 2, "its 'groups' is []"),
    Mistake("words for a ratio", f"{REPLAY} ratio.json", 2, "its 'ratio' is 'a third'"),
    Mistake("a number for a scope", f"{REPLAY} scope.json", 2, "its 'scope' is 3"),
    Mistake("a list of shares", f"{REPLAY} shares.json", 2, "its 'ratio_of' is [0.5]"),
    Mistake("all of a group", f"{REPLAY} everything.json", 2, "edit it or make it anew"),
    Mistake("a position too far", f"{REPLAY} far.json", 2, "do not fit each other"),
    Mistake("a position below none", f"{REPLAY} negative.json", 2, "numbers from 0 on"),
    Mistake("half a position", f"{REPLAY} half.json", 2, "numbers from 0 on"),
    Mistake("another axis", f"{REPLAY} axis.json", 2, "conv1_weight [2] of conv1_weight[0] is not in this model"),
    Mistake("a mistyped parameter", f"{REPLAY} name.json", 2, "conv1_wieght"),
    Mistake("no parameter", f"{REPLAY} noname.json", 2, "it has no 'parameter'"),
    Mistake("a group twice", f"{REPLAY} twice.json", 2, "stands twice"),
    Mistake("with a ratio", f"{REPLAY} plan.json --ratio 0.5", 2, "leave out --ratio"),
    Mistake("with a scope", f"{REPLAY} plan.json --scope global", 2, "leave out --scope"),
    Mistake("with a multiple", f"{REPLAY} plan.json --round-to 8", 2, "leave out --round-to"),
    Mistake("force without a plan", f"{CUT} --force-plan", 2, "give one with --plan"),
    Mistake("read and written", f"{REPLAY} plan.json --save-plan plan.json", 2, "read and written"),
    Mistake("saved into no folder", f"{CUT} --save-plan plans/p.json", 2, "does not exist"),
    Mistake("saved into OUT", f"{CUT} --save-plan out.onnx", 2, "written twice"),
    Mistake("to verify a model by another plan", "verify m.onnx m.onnx lm.json", 2, "made of another graph"),
    Mistake("to verify what is not pruned", "verify m.onnx m.onnx plan.json", 1, ""),
    Mistake("to verify another model", "verify m.onnx lm.onnx plan.json", 1, ""),
    Mistake("to verify without a plan", "verify m.onnx m.onnx", 2, "PLAN"),
    Mistake("a plan in the place of the model", "verify plan.json m.onnx plan.json", 2, "plan.json"),
]  # fmt: skip

ROWS = {"ratios": RATIOS, "exclusions": EXCLUSIONS, "shapes": SHAPES, "plans": PLANS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the rows name, and nothing else."""
    made = tmp_path_factory.mktemp("mistakes")
    for name, content in FILES.items():
        text = content()
        (made / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return made


@pytest.mark.parametrize(
    "mistake", [pytest.param(m, id=f"{subject}: {m.what}") for subject, rows in ROWS.items() for m in rows]
)
def test_a_mistake(mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    code = main(shlex.split(mistake.command))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onnxprune: error: "), err
    assert err.count("\n") == 1, err
    assert mistake.says in err
    assert "internal error" not in err
    assert code == mistake.code, err
    assert contents(folder) == before


def test_no_row_stands_twice() -> None:
    commands = [m.command for rows in ROWS.values() for m in rows]
    assert len(set(commands)) == len(commands)
