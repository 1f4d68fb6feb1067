"""What operators have in common: one place for each trait, so that a new operator is entered where it belongs.

A trait is a set of operators' names, of ONNX's own domain and of com.microsoft; where two stages mean nearly the same,
the difference stands beside. Knows names of operators, no graph and no stage.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

# ---- what moves values

SAME_ORDER = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""The output holds the elements of the input in the same row-major order."""

REARRANGING = SAME_ORDER | {"Transpose"}
"""The output holds the elements of the input, each once."""

MOVING = REARRANGING | {"Slice", "Split", "Gather", "Concat", "Tile", "Expand"}
"""Elements are moved, picked, joined or repeated; none is computed."""

PUTTING = frozenset({"Concat", "Where", "Scatter", "ScatterElements", "ScatterND", "TensorScatter"})
"""Values are put beside others: those of all inputs, of the last two (Where), or of the first (Scatter)."""

REMEMBERING: Mapping[str, Mapping[int, int]] = {
    "Attention": {4: 1, 5: 2},
    "com.microsoft::Attention": {4: 1},
    "com.microsoft::DecoderMaskedMultiHeadAttention": {5: 1, 6: 2},
    "com.microsoft::DecoderMaskedSelfAttention": {4: 1},
    "com.microsoft::GroupQueryAttention": {3: 1, 4: 2},
    "com.microsoft::MultiHeadAttention": {6: 1, 7: 2},
    "com.microsoft::QAttention": {8: 1},
    "com.microsoft::SparseAttention": {3: 1, 4: 2},
}
"""Attention with a cache: the inputs of the past, and the outputs that give it out again beside what is new."""

IN_PLACE = frozenset({"com.microsoft::SparseAttention"})
"""Of these, those whose kernels write what is new into the memory of the past, and run only where the caller has bound
that input and that output to one buffer."""

AFTER_SATURATING = (MOVING - {"Tile", "Expand"}) | {"Cast", "ReduceMean", "Constant", "Shape", "Equal", "If"}
"""Between a saturating operator and the end of a graph: what hands values on, averages them, or asks for no more than
their sizes."""

CARRYING_INTEGERS = (MOVING - {"Concat"}) | {"Cast", "Clip"}
"""Integers of the first input are handed on as they are."""

MIXING_INTEGERS = frozenset({"Concat", "Add", "Mul", "Where", "Max", "Min"})
"""Integers of any input are handed on, also those that become an index: wrapped from negative ones, shifted, joined."""

CARRYING_PIXELS = frozenset({"Cast", "Identity", "Transpose", "Dropout", "Resize"})
"""The channels of an image keep their range and their order."""

CARRYING_PARAMETERS = frozenset({"Identity", "Cast", "Transpose", "DequantizeLinear"})
"""Of a parameter they make another that can be written back: each has an inverse."""

PIECING_PARAMETERS = MOVING - {"Tile", "Expand"}
"""Of parameters they make another whose numbers are some of theirs."""

MOVING_PARAMETERS = (REARRANGING - {"Flatten"}) | {"Cast", "Concat", "Einsum", "Attention"}
"""Whoever reads what these make of a parameter sums over one of its axes."""

SIZES = frozenset({"Shape", "Size"})
"""They read sizes, and no values."""

ASKING_WIDTHS = frozenset({"Attention"})
"""ONNX Runtime makes up the width of what comes out where that of what goes in is not declared."""

# ---- what computes

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
"""Affine in one operand where the other is a constant (Div: in its first one)."""

ADDING = frozenset({"Add", "Sum"})
"""The sum of tensors."""

COMPARING = frozenset({"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"})
"""Two numbers in, one truth out."""

LOGICAL = frozenset({"Not", "And", "Or", "Xor"})
"""Truths in, one truth out."""

BROADCASTING = (
    ARITHMETIC | ADDING | COMPARING | (LOGICAL - {"Not"}) | {"Max", "Mean", "Min", "Mod", "Pow", "Where"}
)  # fmt: skip
"""Elementwise over several inputs, of which shapes are broadcast to the one of the output."""

POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
"""A window over spatial axes, channel by channel."""

HOMOGENEOUS = SAME_ORDER | (POOLS - {"LpPool"}) | {
    "Cast", "Dropout", "Transpose", "Split", "Slice", "Pad", "Resize", "Upsample", "DepthToSpace", "SpaceToDepth",
    "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "Relu", "LeakyRelu",
}  # fmt: skip
"""f(s x) = s f(x) for s > 0, of one tensor."""

SOFTMAXES = frozenset({"Softmax", "LogSoftmax"})
"""Only differences along an axis count."""

SATURATING = SOFTMAXES | {"Sigmoid", "Tanh", "HardSigmoid"}
"""They level differences between large values: what goes in tells more than what comes out."""

GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""The recurrent layers, and the gates of each: blocks of rows in W and R."""

CONTROL = frozenset({"If", "Loop", "Scan"})
"""They have bodies, which are graphs."""

OF_WHAT_COMES_IN = (
    (MOVING - {"Identity", "Tile", "Expand"}) | SIZES | ARITHMETIC | COMPARING | LOGICAL | {"Cast", "Where"}
)  # fmt: skip
"""They make up nothing: where what comes in may not change, nor may what comes out."""

# ---- what decides, draws or rounds

JUMPING = frozenset({"Hardmax", "Sign", "Floor", "Ceil", "Round"})
"""Floats in, floats out, and a jump between them."""

SAMPLING = frozenset({"RoiAlign", "MaxRoiPool", "GridSample"})
"""Input 1 is where they look: a millionth of an image's width may be much of a step from one pixel to the next."""

CONFIGURED = SAMPLING | {
    "Resize", "Upsample", "Pad", "Clip", "OneHot", "NonMaxSuppression", "Range", "Pow", "Mod", "Trilu",
    "ConstantOfShape",
}  # fmt: skip
"""What they read beside their first input says how they work."""

DRAWING_LIKE = frozenset({"RandomNormalLike", "RandomUniformLike"})
"""Numbers at random, of the shape of the input."""

DRAWING = DRAWING_LIKE | {"RandomNormal", "RandomUniform", "Bernoulli"}
"""Numbers at random, for which there is one that stands for all; of a Multinomial there is none."""

ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
"""Floats in, integers of 8 bits out."""

ROUNDING_INSIDE = frozenset({"DynamicQuantizeLSTM", "QEmbedLayerNormalization"})
"""Operators of com.microsoft that round on the way, where nobody sees it."""

INTEGER_BIASED = frozenset({"QLinearConv", "QGemm", "DequantizeLinear"})
"""They read a bias of 32 bits, in steps of the product of two scales."""


def makes_nothing_up(node: NodeProto) -> bool:
    """Whether a node is one of `OF_WHAT_COMES_IN`."""
    return not node.domain and node.op_type in OF_WHAT_COMES_IN
