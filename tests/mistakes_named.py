"""Mistakes with shares, exclusions, shapes of inputs and plans; see test_mistakes.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from graphs import graph
from onnx import ModelProto

import onnxprune

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
    "version.json": lambda: plan(version="two"),
    "mark.json": lambda: plan(fingerprint=7),
    "other.json": lambda: plan(fingerprint="0" * 32),
    "word.json": lambda: plan(groups={"conv1_weight[0]": "half"}),
    "width.json": lambda: edited(lambda r: r.update(shape=[48])),
    "empty.json": lambda: plan(groups={}),
    "typo.toml": lambda: 'ratios-of = ["conv1_weight=0.5"]\n',
    "true.toml": lambda: "ratio-of = {conv1_weight = true}\n",
    "nested.toml": lambda: "[ratio-of.conv1]\nweight = 0.5\n",
    "number.toml": lambda: "nodes-to-exclude = 3\n",
    "types.toml": lambda: 'op-types-to-exclude = ["Gemm", "conv"]\n',
    "shares.toml": lambda: '[ratio-of]\n"conv1*" = 1.5\n',
    "many.toml": lambda: "ratio-of = 0.5\n",
    "shapes.toml": lambda: "overwrite-input-shape = {image = [1, 3, 8, 8]}\n",
    "excluded.toml": lambda: "nodes-to-exclude = true\n",
}

CUT = "m.onnx out.onnx --fast"
SHARE = "is not a name and the share of its units to remove, 0 to below 1, as in 'encoder.*=0.5'"

RATIOS = [
    ("a share without a name", f"{CUT} --ratio-of 0.5", 2, SHARE),
    ("a name without a share", f"{CUT} --ratio-of conv1_weight", 2, SHARE),
    ("nothing at all", f"{CUT} --ratio-of", 2, "expected at least one argument"),
    ("a share of all", f"{CUT} --ratio-of conv1_weight=1", 2, SHARE),
    ("per cent", f"{CUT} --ratio-of conv1_weight=50%", 2, SHARE),
    ("a share above one", f"{CUT} --ratio-of conv1_weight=50", 2, SHARE),
    ("a share below none", f"{CUT} --ratio-of conv1_weight=-0.1", 2, SHARE),
    ("no number", f"{CUT} --ratio-of conv1_weight=half", 2, SHARE),
    ("a colon", f"{CUT} --ratio-of conv1_weight:0.5", 2, SHARE),
    ("nan", f"{CUT} --ratio-of conv1_weight=nan", 2, SHARE),
    ("an empty name", f"{CUT} --ratio-of =0.5", 2, SHARE),
    ("another flag", f"{CUT} --ratios-of conv1_weight=0.5", 2, "did you mean '--ratio-of'?"),
    ("a name of nothing", f"{CUT} --ratio-of encoder.layer.0=0.5", 2, "`onnxprune inspect` lists the names"),
    ("a glob of nothing", f"{CUT} --ratio-of 'encoder.*=0.5'", 2, "no node, parameter or group has such a name"),
    ("a mistyped name", f"{CUT} --ratio-of conv1_wieght=0.5", 2, "did you mean conv1_weight"),
    ("a mistyped node", f"{CUT} --ratio-of net.c=0.5", 2, "did you mean net/c"),
    ("a mistyped group", f"{CUT} --ratio-of 'conv3_weight[0]=0.5'", 2, "conv1_weight[0]"),
    ("capitals", f"{CUT} --ratio-of CONV1_WEIGHT=0.5", 2, "did you mean conv1_weight"),
    ("one of two names is of nothing", f"{CUT} --ratio-of conv1_weight=0.5 x=0.2", 2, "--ratio-of x=0.2: no node"),
    ("no regular expression", f"{CUT} --ratio-of 're:(=0.5'", 2, "not a regular expression"),
    ("the last layer", f"{CUT} --ratio-of head_weight=0.5", 2, "nothing that it makes may go; name what it reads, stem_weight[0]"),
    ("the classifier's node", f"{CUT} --ratio-of net/logits=0.5", 2, "stem_weight[0]"),
    ("what is excluded", f"{CUT} --ratio-of conv1_weight=0.5 --nodes-to-exclude conv1_weight", 2, "nothing that it makes may go"),
    ("two shares of one name", f"{CUT} --ratio-of conv1_weight=0.5 conv1_weight=0.2", 2, "says two things of conv1_weight: 0.5 and 0.2"),
    ("two shares of one group", f"{CUT} --ratio-of stem_weight=0.5 conv2_weight=0.2", 2, "go together; give them one share"),
    ("a layer and its node", f"{CUT} --ratio-of net/c=0.5 conv1_weight=0.2", 2, "go together; give them one share"),
    ("patterns in the wrong order", f"{CUT} --ratio-of 'conv1*=0.5' '*=0.2'", 2, "put it last"),
    ("a stream that stays", f"{CUT} --no-residual --ratio-of stem_weight=0.5", 2, "leave out --no-residual"),
    ("a normalised stream", "lm.onnx out.onnx --fast --ratio-of into=0.5", 2, "--residual lets them go"),
    ("more than --max-ratio", f"{CUT} --ratio-of conv1_weight=0.5 --max-ratio 0.4", 2, "more than --max-ratio 0.4"),
    ("everything is to stay", f"{CUT} --ratio-of '*=0'", 3, "leave out --ratio-of"),
    ("less than one unit", f"{CUT} --ratio-of '*=0.001'", 3, "leave out --ratio-of"),
    ("MACs out of reach", f"{CUT} --of macs --ratio 0.8 --ratio-of conv1_weight=0.1 stem_weight=0.1", 2, "at most 0.194 can go"),
    ("parameters out of reach", f"{CUT} --of params --ratio 0.99 --ratio-of stem_weight=0", 2, "cannot be reached"),
    ("shares above the target", f"{CUT} --of macs --ratio 0.1 --ratio-of conv1_weight=0.5", 2, "more than --ratio 0.1"),
    ("with a plan", "m.onnx out.onnx --plan plan.json --ratio-of conv1_weight=0.5", 2, "leave out --ratio-of"),
    ("in a sweep", "sweep m.onnx out --fast --ratio-of x=0.5", 2, "--ratio-of x=0.5: no node"),
    ("inspect has no shares", "inspect m.onnx --ratio-of conv1_weight=0.5", 2, "--ratio-of"),
    ("a table with a wrong share", f"{CUT} --config shares.toml", 2, "'conv1*=1.5' is not a name and the share"),
    ("a file with one number", f"{CUT} --config many.toml", 2, SHARE),
    ("spaces around the sign", f"{CUT} --ratio-of conv1_weight = 0.5", 2, "'conv1_weight' is not a name"),
    ("a comma for the point", f"{CUT} --ratio-of conv1_weight=0,5", 2, SHARE),
    ("an axis that there is not", f"{CUT} --ratio-of 'conv1_weight[9]=0.5'", 2, "conv1_weight[9]"),
    ("an axis of the kernel", f"{CUT} --ratio-of 'conv1_weight[2]=0.5'", 2, "nothing that it makes may go"),
    ("an input of the model", f"{CUT} --ratio-of image=0.5", 2, "no node, parameter or group"),
    ("an output of the model", f"{CUT} --ratio-of logits=0.5", 2, "`onnxprune inspect` lists the names"),
    ("a type of operators", f"{CUT} --ratio-of Conv=0.5", 2, "no node, parameter or group"),
    ("an activation and its layer", f"{CUT} --ratio-of net/d=0.5 net/c=0.4", 2, "go together; give them one share"),
    ("a name that is only a part", f"{CUT} --ratio-of conv1=0.5", 2, "did you mean conv1_"),
    ("more units kept than there are", f"{CUT} --ratio-of '*=0.5' --min-channels 100", 3, "lower --min-channels"),
    ("a multiple of too many", f"{CUT} --ratio-of '*=0.5' --round-to 64", 3, "lower --round-to"),
    ("a mistyped flag in a file", f"{CUT} --config typo.toml", 2, "no flag --ratios-of; did you mean '--ratio-of'?"),
    ("true for a share in a file", f"{CUT} --config true.toml", 2, "'conv1_weight=True' is not a name and the share"),
    ("a table in a table", f"{CUT} --config nested.toml", 2, SHARE),
    ("in compare", "compare m.onnx m.onnx --ratio-of conv1_weight=0.5", 2, "--ratio-of"),
    ("in verify", "verify m.onnx m.onnx plan.json --ratio-of conv1_weight=0.5", 2, "--ratio-of"),
]  # fmt: skip

EXCLUSIONS = [
    ("a node of nothing", f"{CUT} --nodes-to-exclude Conv_0", 2, "no node, parameter or group has such a name"),
    ("a mistyped parameter", f"{CUT} --nodes-to-exclude head_wieght", 2, "did you mean head_weight"),
    ("a mistyped group", f"{CUT} --nodes-to-exclude 'conv1_wieght[0]'", 2, "did you mean conv1_weight"),
    ("one of two of nothing", f"{CUT} --nodes-to-exclude net/c net/x", 2, "--nodes-to-exclude net/x"),
    ("names with a comma", f"{CUT} --nodes-to-exclude net/c,net/e", 2, "no node, parameter or group"),
    ("a glob of nothing", f"{CUT} --nodes-to-exclude 'layer4*'", 2, "`onnxprune inspect` lists the names"),
    ("an axis that there is not", f"{CUT} --nodes-to-exclude 'conv1_weight[4]'", 2, "did you mean conv1_weight"),
    ("an output", f"{CUT} --nodes-to-exclude logits", 2, "did you mean net/logits?"),
    ("an empty name", f"{CUT} --nodes-to-exclude ''", 2, "the word behind --nodes-to-exclude is empty"),
    ("no value", f"{CUT} --nodes-to-exclude", 2, "expected at least one argument"),
    ("no regular expression", f"{CUT} --nodes-to-exclude 're:*'", 2, "not a regular expression"),
    ("a module of torch", f"{CUT} --op-types-to-exclude Linear", 2, "the model has no such operator"),
    ("small letters", f"{CUT} --op-types-to-exclude conv", 2, "did you mean Conv?"),
    ("a node's name as a type", f"{CUT} --op-types-to-exclude net/c", 2, "the model has no such operator"),
    ("a glob of types", f"{CUT} --op-types-to-exclude 'Conv*'", 2, "did you mean Conv?"),
    ("everything", f"{CUT} --nodes-to-exclude '*'", 3, "everything is excluded by --nodes-to-exclude"),
    ("every type with weights", f"{CUT} --op-types-to-exclude Conv Gemm", 3, "excluded by --op-types-to-exclude"),
    ("true in a file", f"{CUT} --config excluded.toml", 2, "nodes-to-exclude takes a value"),
    ("in a sweep", "sweep m.onnx out --fast --op-types-to-exclude conv", 2, "did you mean Conv?"),
    ("in inspect", "inspect m.onnx --nodes-to-exclude conv1_wieght", 2, "did you mean conv1_weight"),
    ("with a plan that removes it", "m.onnx out.onnx --fast --plan plan.json --nodes-to-exclude net/c", 2, "must stay"),
    ("a mistyped flag", f"{CUT} --node-to-exclude net/c", 2, "did you mean '--nodes-to-exclude'?"),
    ("a regular expression of nothing", f"{CUT} --nodes-to-exclude 're:^encoder'", 2, "no node, parameter or group"),
    ("a number in a file", f"{CUT} --config number.toml", 2, "--nodes-to-exclude 3: no node"),
    ("a wrong type in a file", f"{CUT} --config types.toml", 2, "did you mean Conv?"),
]  # fmt: skip

SHAPES = [
    ("an input that there is not", f"{CUT} --overwrite-input-shape input:1,3,8,8", 2, "image"),
    ("no sizes", f"{CUT} --overwrite-input-shape image", 2, "is not NAME:SIZES, such as image:1,3,224,224"),
    ("sizes without a name", f"{CUT} --overwrite-input-shape 1,3,8,8", 2, "is not NAME:SIZES"),
    ("an x between sizes", f"{CUT} --overwrite-input-shape image:1x3x8x8", 2, "is not NAME:SIZES"),
    ("an equals sign", f"{CUT} --overwrite-input-shape image=1,3,8,8", 2, "is not NAME:SIZES"),
    ("a word for a size", f"{CUT} --overwrite-input-shape image:N,3,8,8", 2, "leaves a dimension open"),
    ("a size below -1", f"{CUT} --overwrite-input-shape image:-2,3,8,8", 2, "leaves a dimension open"),
    ("half a size", f"{CUT} --overwrite-input-shape image:1.5,3,8,8", 2, "is not NAME:SIZES"),
    ("too few sizes", f"{CUT} --overwrite-input-shape image:1,3,8", 2, "give 4 sizes"),
    ("too many sizes", f"{CUT} --overwrite-input-shape image:1,1,3,8,8", 2, "give 4 sizes"),
    ("channels last", f"{CUT} --overwrite-input-shape image:1,8,8,3", 2, "3, not 8"),
    ("another picture size", f"{CUT} --overwrite-input-shape image:1,3,32,32", 2, "8, not 32"),
    ("a parameter", f"{CUT} --overwrite-input-shape conv1_weight:24,16,3,3", 2, "image"),
    ("an output", f"{CUT} --overwrite-input-shape logits:1,5", 2, "image"),
    ("two shapes of one input", f"{CUT} --overwrite-input-shape image:1,3,8,8 image:2,3,8,8", 2, "says two things of image"),
    ("a table in a file", f"{CUT} --config shapes.toml", 2, "is not NAME:SIZES"),
    ("in inspect", "inspect m.onnx --overwrite-input-shape picture:1,3,8,8", 2, "image"),
    ("a batch too large", f"{CUT} --overwrite-input-shape image:100000000,3,8,8", 4, "smaller inputs"),
    ("a mistyped flag", f"{CUT} --overwrite-input-shapes image:1,3,8,8", 2, "did you mean '--overwrite-input-shape'?"),
    ("a name without sizes", f"{CUT} --overwrite-input-shape image:", 2, "is not NAME:SIZES"),
    ("no size between commas", f"{CUT} --overwrite-input-shape image:1,,8,8", 2, "is not NAME:SIZES"),
    ("sizes in brackets", f"{CUT} --overwrite-input-shape 'image:[1,3,8,8]'", 2, "is not NAME:SIZES"),
]  # fmt: skip

REPLAY = "m.onnx out.onnx --fast --plan"
PLANS = [
    ("a plan of another graph", f"{REPLAY} lm.json", 2, "made of another graph"),
    ("the same by force", f"{REPLAY} lm.json --force-plan", 2, "is not in this model"),
    ("a model", f"{REPLAY} m.onnx", 2, "not a plan, it is no JSON"),
    ("no file", f"{REPLAY} no.json", 2, "no.json does not exist"),
    ("an old version", f"{REPLAY} old.json", 2, "version 1"),
    ("a list", f"{REPLAY} list.json", 2, "not a plan"),
    ("a file that was cut off", f"{REPLAY} cut.json", 2, "no JSON"),
    ("groups as a list", f"{REPLAY} groups.json", 2, "its 'groups' is []"),
    ("words for a ratio", f"{REPLAY} ratio.json", 2, "its 'ratio' is 'a third'"),
    ("a number for a scope", f"{REPLAY} scope.json", 2, "its 'scope' is 3"),
    ("a list of shares", f"{REPLAY} shares.json", 2, "its 'ratio_of' is [0.5]"),
    ("all of a group", f"{REPLAY} everything.json", 2, "edit it or make it anew"),
    ("a position too far", f"{REPLAY} far.json", 2, "do not fit each other"),
    ("a position below none", f"{REPLAY} negative.json", 2, "numbers from 0 on"),
    ("half a position", f"{REPLAY} half.json", 2, "numbers from 0 on"),
    ("another axis", f"{REPLAY} axis.json", 2, "conv1_weight [2] of conv1_weight[0] is not in this model"),
    ("a mistyped parameter", f"{REPLAY} name.json", 2, "conv1_wieght"),
    ("no parameter", f"{REPLAY} noname.json", 2, "it has no 'parameter'"),
    ("a group twice", f"{REPLAY} twice.json", 2, "stands twice"),
    ("with a ratio", f"{REPLAY} plan.json --ratio 0.5", 2, "leave out --ratio"),
    ("with a scope", f"{REPLAY} plan.json --scope global", 2, "leave out --scope"),
    ("with a multiple", f"{REPLAY} plan.json --round-to 8", 2, "leave out --round-to"),
    ("force without a plan", f"{CUT} --force-plan", 2, "give one with --plan"),
    ("read and written", f"{REPLAY} plan.json --save-plan plan.json", 2, "read and written"),
    ("saved into no folder", f"{CUT} --save-plan plans/p.json", 2, "does not exist"),
    ("saved into OUT", f"{CUT} --save-plan out.onnx", 2, "written twice"),
    ("to verify a model by another plan", "verify m.onnx m.onnx lm.json", 2, "made of another graph"),
    ("to verify what is not pruned", "verify m.onnx m.onnx plan.json", 1, ""),
    ("to verify another model", "verify m.onnx lm.onnx plan.json", 1, ""),
    ("to verify without a plan", "verify m.onnx m.onnx", 2, "PLAN"),
    ("a plan in the place of the model", "verify plan.json m.onnx plan.json", 2, "plan.json"),
    ("words for a version", f"{REPLAY} version.json", 2, "its 'version' is 'two'"),
    ("a number for a fingerprint", f"{REPLAY} mark.json", 2, "its 'fingerprint' is 7"),
    ("a fingerprint of another graph", f"{REPLAY} other.json", 2, "made of another graph"),
    ("a group that is no list", f"{REPLAY} word.json", 2, "its 'conv1_weight[0]' is 'half'"),
    ("another width", f"{REPLAY} width.json", 2, "conv1_weight [0] of conv1_weight[0] is not in this model"),
    ("nothing to remove", f"{REPLAY} empty.json", 3, "the plan removes nothing"),
    ("what an excluded node holds", f"{REPLAY} plan.json --op-types-to-exclude Conv", 2, "edit it or make it anew"),
]  # fmt: skip

ROWS = {"ratios": RATIOS, "exclusions": EXCLUSIONS, "shapes": SHAPES, "plans": PLANS}
