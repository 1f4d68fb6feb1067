"""What runtimes fuse into one operator of com.microsoft beside attention: gates, norms with gates, causal convolutions.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import note_sum_of, pointwise, ranks_known, spell
from onnxprune.trace.rules.inputs import CausalConv

GATED_X, GATED_SCALE, GATE = range(3)


def gated_add(op: Op) -> None:
    """GatedAdd: a tensor and another one times a gate of every row."""
    pointwise(op)
    note_sum_of(op, [0, 1], [0, 1])


def gated_rms_norm(op: Op) -> None:
    """GatedRMSNorm: over as many positions of the last axis as the scale has, times a gate of every position."""
    if not ranks_known(op, [GATED_X, GATED_SCALE]):
        return None
    width, each = op.dims(GATED_X)[-1], op.dims(GATED_SCALE)[0]
    if width is None or each is None:
        return op.freeze("the width of the norm is not known")
    spelled = spell(op.dims(GATED_X))
    spelled[-1] = "HC" if width > each else "C"
    ins = {GATED_X: spelled, GATED_SCALE: ["C"], GATE: spelled}
    op.eq(ins, {0: spelled}, sizes={"H": width // each, "C": each}, stat="C")
    return None


def linear_attention_gate(op: Op) -> None:
    """LinearAttentionGate: decay and learning rate of every head."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        head = [spelled[-1]]
        op.eq({0: spelled, 1: head, 2: head, 3: spelled}, {0: spelled, 1: spelled})


def causal_conv(op: Op) -> None:
    """CausalConvWithState: a depthwise convolution over the past and what comes now; what it hands on is the past of
    the next run."""
    if not ranks_known(op, [CausalConv.X, CausalConv.WEIGHT]):
        return None
    if int(op.attr("ndim", 1)) != 1:
        return op.freeze("a convolution over several axes")
    last = op.attr("channels_last", 0)
    x, past = (["n", "L", "c"], ["n", "P", "c"]) if last else (["n", "c", "L"], ["n", "c", "P"])
    ins = {CausalConv.X: x, CausalConv.WEIGHT: ["c", "", "K"], CausalConv.BIAS: ["c"], CausalConv.PAST: past}
    outs = {0: [s if s != "L" else "" for s in x], 1: [s if s != "P" else "" for s in past]}
    given = op.has(CausalConv.PAST) and not op.blocks(CausalConv.PAST)
    text = "the past of a convolution comes in with a fixed shape" if given else "a convolution slides over this axis"
    op.eq(ins, outs, pinned="LPK", silent="K", macs="cLK", text=text)
    return None
