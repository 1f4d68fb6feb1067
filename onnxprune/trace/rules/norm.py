"""Normalisations: statistics are taken over some letters while the axis stays. A rule knows one `Op`, not the graph."""

from __future__ import annotations

from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import LETTERS, aligned, axis_of, note_sum_of, own_axis, ranks_known, spell
from onnxprune.trace.rules.inputs import EmbedNorm, Norm


def batch_norm(op: Op) -> None:
    """In training mode the statistics are those of what goes in: a weight that is standardised before it is used."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0), "nc" + LETTERS[14:])
        vectors = {i: ["c"] for i in range(Norm.SCALE, Norm.VARIANCE + 1) if op.dims(i) != (1,)}
        outs = {0: spelled} | {i: ["c"] for i in range(1, len(op.outputs))}
        stat = "".join(spelled[:1] + spelled[2:]) if op.attr("training_mode", 0) else ""
        op.eq({0: spelled, **vectors}, outs, stat=stat)


def instance_norm(op: Op) -> None:
    """InstanceNormalization: statistics of every channel over its image."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0), "ncdefghijk")
        vectors = {i: spell(op.dims(i), ["c"]) for i in (Norm.SCALE, Norm.BIAS)}
        op.eq({0: spelled, **vectors}, {0: spelled}, stat="".join(spelled[2:]))


def layer_norm(op: Op) -> None:
    """LayerNormalization, RMSNormalization and SimplifiedLayerNormalization."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        rank = len(spelled)
        axis = axis_of(op, -1, rank)
        ins = {0: spelled} | {i: aligned(op.dims(i), rank) for i in (Norm.SCALE, Norm.BIAS)}
        moments = [s if k < axis else "" for k, s in enumerate(spelled)]
        op.eq(ins, {0: spelled, 1: moments, 2: moments}, stat="".join(spelled[axis:]))


def skip_layer_norm(op: Op) -> None:
    """com.microsoft Skip(Simplified)LayerNormalization: input + skip (+ bias), normalised; output 3 is the sum."""
    if ranks_known(op, [0, 1]):
        spelled = spell(op.dims(0))
        rank = len(spelled)
        ins = {i: aligned(op.dims(i), rank) for i in range(len(op.inputs)) if op.has(i)}
        moments = [*spelled[:-1], ""]
        op.eq(ins, {0: spelled, 1: moments, 2: moments, 3: spelled}, stat=spelled[-1])
        note_sum_of(op, [0, 1], [0, 1])


def embed_layer_norm(op: Op) -> None:
    """com.microsoft EmbedLayerNormalization: word, position and segment tables summed and normalised."""
    tables = {
        EmbedNorm.WORD_TABLE: ["r", "c"],
        EmbedNorm.POSITION_TABLE: ["s", "c"],
        EmbedNorm.SEGMENT_TABLE: ["t", "c"],
    }
    vectors = {EmbedNorm.SCALE: ["c"], EmbedNorm.BIAS: ["c"]}
    outs = {0: ["a", "b", "c"], 2: ["a", "b", "c"]}
    op.eq(tables | vectors, outs, pinned="rst", stat="c", text="rows are looked up")


def group_norm(op: Op) -> None:
    """Gain and bias are of every group up to opset 20, of every channel since. Whole groups may go."""
    if not ranks_known(op, [0]) or (channels := op.dims(0)[1]) is None:
        return
    groups = int(op.attr("num_groups"))
    spelled = ["n", "gc" if groups > 1 else "c", *spell(op.dims(0)[2:], "uvwxyz")]
    each = channels // groups
    vectors = {}
    for i in (Norm.SCALE, Norm.BIAS):
        per_group = op.dims(i) == (groups,) and groups != channels
        vectors[i] = ["g" if per_group else spelled[1]]
    op.eq({0: spelled, **vectors}, {0: spelled}, sizes={"g": groups, "c": each}, stat="c" + "".join(spelled[2:]))
    block = next((b for b in op.blocks(0) if b.axes == (1,)), None)
    if block is not None and groups > 1:
        ids = block.ids.reshape(groups, each)
        rows = op.labels.derive(ids)
        op.labels.rectangle(ids)
        op.edit(lambda e: e.attr("num_groups", int(e.kept(rows).sum())))


def local_response(op: Op) -> None:
    """LRN: neighbours along the channel axis; after pruning, the neighbours are those that are left."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        op.eq({0: spelled}, {0: spelled}, stat=spelled[1], normalises=False)  # a window of neighbours, not all of them


def mean_variance_norm(op: Op) -> None:
    """MeanVarianceNormalization over `axes`."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        axes = op.attr("axes", [0, 2, 3])
        op.eq({0: spelled}, {0: spelled}, stat="".join(spelled[a] for a in axes))


def lp_norm(op: Op) -> None:
    """LpNormalization along one axis."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        op.eq({0: spelled}, {0: spelled}, stat=spelled[own_axis(op, -1, len(spelled))])
