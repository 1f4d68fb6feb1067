"""Sequences of which not everything is known hold what they are given; where it is known, what is in them is followed."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph, pruned, shapes, silence
from onnx import ModelProto

from onnxprune.api import inspect, prune

SIGNATURE = "(float[N, 3, 6, 6] x) => (float[N, 5] y)"
LAST = "m = ReduceMean <axes = [2, 3], keepdims = 0> (b) y = MatMul(m, G)"
FIRST = "h = Conv(x, D) r = Relu(h) a = Conv(r, A) i0 = Constant <value_int = 0> () "
WEIGHTS = {"D": (8, 3, 1, 1), "A": (8, 8, 1, 1), "G": (8, 5)}


def network(body: str, signature: str = SIGNATURE, **weights: tuple[int, ...]) -> ModelProto:
    return graph(signature, FIRST + body + LAST, **WEIGHTS | weights)


HELD = {
    "a position that the run tells": "p = ReduceMax <keepdims = 0> (x) no = Constant <value_float = 9.0> () g = Greater(p, no) z = Cast <to = 7> (g) "
    "q = SequenceConstruct(a, a) b = SequenceAt(q, z) ",
    "parts of an open axis": "t = Transpose <perm = [1, 0, 2, 3]> (a) q = SplitToSequence <axis = 1> (t) s = SequenceAt(q, i0) "
    "u = Transpose <perm = [1, 0, 2, 3]> (s) b = Add(a, u) ",
    "position by position of the channels": "q = SplitToSequence <axis = 1> (a) e = SequenceAt(q, i0) b = Mul(a, e) ",
    "carried by a loop": "two = Constant <value_int = 2> () yes = Constant <value = bool {1}> () q = SequenceConstruct(a) "
    "w = Loop (two, yes, q) <body = g (int64 i, bool c, seq(float[N, 8, 6, 6]) s) => (bool d, seq(float[N, 8, 6, 6]) t) "
    "{ d = Identity(c) o = Constant <value_int = 0> () e = SequenceAt(s, o) f = Relu(e) t = SequenceInsert(s, f) }> "
    "b = SequenceAt(w, i0) ",
}


@pytest.mark.parametrize("case", HELD)
def test_what_is_not_known_is_held(case: str) -> None:
    """The layer before is pruned all the same."""
    result = pruned(network(HELD[case]))
    found = shapes(result)
    assert (found["D"], found["A"][0], found["G"]) == ((4, 3, 1, 1), 8, (8, 5))


def test_a_sequence_that_comes_out_keeps_its_shapes() -> None:
    model = network("q = SequenceConstruct(a) b = Relu(a) ", "(float[N, 3, 6, 6] x) => (float[N, 5] y, seq(float[N, 8, 6, 6]) q)")
    found = shapes(prune(model, ratio=0.5, fast=True))
    assert (found["D"], found["A"]) == ((4, 3, 1, 1), (8, 4, 1, 1))


def test_a_parameter_in_a_sequence_stays() -> None:
    model = network("q = SequenceConstruct(P, a) p = SequenceAt(q, i0) b = Add(a, p) ", P=(1, 8, 1, 1))
    assert "a parameter in a sequence" in {f.reason for f in inspect(model).frozen}
    assert shapes(pruned(model))["P"] == (1, 8, 1, 1)


def test_what_goes_was_silent() -> None:
    """Unequal parts, of which one is put in at the front and one is taken out by its place from the end."""
    body = (
        "s = Constant <value_ints = [2, 6]> () im = Constant <value_int = -1> () q = SplitToSequence <axis = 1> (a, s) "
        "e = SequenceAt(q, im) f = Relu(e) w = SequenceErase(q, im) v = SequenceInsert(w, f, i0) "
        "b = ConcatFromSequence <axis = 1> (v) "
    )
    model = network(body)
    silence(model, {"D": (0, [1, 2, 4, 7]), "A": (1, [1, 2, 4, 7])})
    gone = [1, 3, 4, 7]  # of the channels: one of the first two, three of the others, which come first behind the join
    silence(model, {"A": (0, gone), "G": (0, [1, 2, 5, 7])})
    found = shapes(pruned(model, equal=True))
    assert (found["D"], found["A"], found["G"]) == ((4, 3, 1, 1), (4, 4, 1, 1), (4, 5))


def test_the_sizes_of_parts_are_written() -> None:
    body = "s = Constant <value_int = 4> () q = SplitToSequence <axis = 1> (a, s) c = SequenceAt(q, i0) i1 = Constant <value_int = 1> () e = SequenceAt(q, i1) b = Mul(c, e) "
    result = pruned(network(body, G=(4, 5)))
    split = next(n for n in result.model.graph.node if n.op_type == "SplitToSequence")
    assert np.array_equal(result.model.weights[split.input[1]].array(), [2, 2])
