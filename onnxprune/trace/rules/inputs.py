"""Which input of an operator is what, in the order and by the names of its definition. Input 0 of one with a single
tensor of data is that tensor everywhere, and is written 0.

Knows operators and numbers, no graph.
"""

from __future__ import annotations

from typing import NamedTuple

DATA, INDICES, UPDATES = range(3)
"""Gather, GatherElements, GatherND; ScatterElements and ScatterND, which have updates."""


class Conv:
    """Conv, ConvTranspose; com.microsoft FusedConv with a sum."""

    X, WEIGHT, BIAS, SUM = range(4)


class DeformConv:
    """DeformConv."""

    X, WEIGHT, OFFSET, BIAS, MASK = range(5)


class Integer:
    """ConvInteger, MatMulInteger."""

    LEFT, RIGHT, LEFT_ZERO, RIGHT_ZERO = range(4)


class QLinear:
    """QLinearConv, QLinearMatMul."""

    LEFT, LEFT_SCALE, LEFT_ZERO, RIGHT, RIGHT_SCALE, RIGHT_ZERO, Y_SCALE, Y_ZERO, BIAS = range(9)


class QGemm:
    """com.microsoft QGemm."""

    A, A_SCALE, A_ZERO, B, B_SCALE, B_ZERO, C, Y_SCALE, Y_ZERO = range(9)


class NBits:
    """com.microsoft MatMulNBits."""

    A, B, SCALES, ZEROS, GROUPS, BIAS = range(6)


class Blocks:
    """com.microsoft GatherBlockQuantized."""

    DATA, INDICES, SCALES, ZEROS = range(4)


class DynamicMatMul:
    """com.microsoft DynamicQuantizeMatMul."""

    A, B, SCALE, ZERO, BIAS = range(5)


class ToFloat:
    """com.microsoft MatMulIntegerToFloat."""

    A, B, A_SCALE, B_SCALE, A_ZERO, B_ZERO, BIAS = range(7)


class Experts:
    """com.microsoft MoE (its layers: FLOAT) and QMoE (CODED): up to the hidden units, down from them, gates beside."""

    class Layer(NamedTuple):
        """The inputs of one layer of all experts; None for what the operator has not."""

        weight: int
        bias: int
        scales: int | None = None
        zeros: int | None = None

    X, ROUTER = range(2)
    FLOAT = Layer(2, 3), Layer(4, 5), Layer(6, 7)
    CODED = Layer(2, 4, 3, 11), Layer(5, 7, 6, 12), Layer(8, 10, 9, 13)
    WEIGHTING = 14


class Gemm:
    """Gemm, com.microsoft FusedGemm."""

    A, B, C = range(3)


class Attention:
    """Attention of opset 23 on."""

    QUERY, KEY, VALUE, MASK, PAST_KEY, PAST_VALUE, LENGTHS = range(7)


class FusedAttention:
    """com.microsoft Attention."""

    X, WEIGHT, BIAS, MASK, PAST, SCORE_BIAS, PAST_LENGTH = range(7)


class QAttention:
    """com.microsoft QAttention, whose first three are those of `FusedAttention`."""

    X, WEIGHT, BIAS, X_SCALE, WEIGHT_SCALE, MASK, X_ZERO, WEIGHT_ZERO, PAST = range(9)


class MultiHeadAttention:
    """com.microsoft MultiHeadAttention."""

    QUERY, KEY, VALUE, BIAS, MASK, SCORE_BIAS, PAST_KEY, PAST_VALUE = range(8)


class PackedMultiHead:
    """com.microsoft PackedMultiHeadAttention."""

    QUERY, KEY, VALUE, BIAS, OFFSET, ENDS, SCORE_BIAS = range(7)


class DecoderMasked:
    """com.microsoft DecoderMaskedMultiHeadAttention."""

    QUERY, KEY, VALUE, MASK, SCORE_BIAS, PAST_KEY, PAST_VALUE, LENGTH, BEAMS, INDIRECTION, BIAS = range(11)


class LinearAttention:
    """com.microsoft LinearAttention."""

    QUERY, KEY, VALUE, PAST, DECAY, BETA = range(6)


class TensorScatter:
    """TensorScatter of opset 24 on."""

    PAST, UPDATE, WHERE = range(3)


class Rotary:
    """RotaryEmbedding of opset 23 on."""

    X, COSINES, SINES, POSITIONS = range(4)


class ContribRotary:
    """com.microsoft RotaryEmbedding."""

    X, POSITIONS, COSINES, SINES = range(4)


class GroupQueryAttention:
    """com.microsoft GroupQueryAttention; from KEY_SCALES on: of a quantised cache, of norms inside the operator."""

    (QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTHS, TOTAL_LENGTH, COSINES, SINES, POSITIONS, SCORE_BIAS, SINKS,
     KEY_SCALES, VALUE_SCALES, QUERY_GAIN, KEY_GAIN) = range(16)  # fmt: skip


class SparseAttention:
    """com.microsoft SparseAttention, whose first five are those of `GroupQueryAttention`; rows and columns are of the
    blocks that its layouts have."""

    (QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, ROWS, COLUMNS, TOTAL_LENGTH, LENGTHS, COSINES, SINES) = range(11)


class Recurrent:
    """LSTM, GRU, RNN."""

    X, WEIGHT, RECURRENCE, BIAS, LENGTHS, STATE, CELL, PEEPHOLES = range(8)


class Norm:
    """BatchNormalization, and what has its first inputs: InstanceNormalization, LayerNormalization, .."""

    X, SCALE, BIAS, MEAN, VARIANCE = range(5)


class EmbedNorm:
    """com.microsoft EmbedLayerNormalization."""

    TOKENS, SEGMENTS, WORD_TABLE, POSITION_TABLE, SEGMENT_TABLE, SCALE, BIAS = range(7)


class Quantize:
    """QuantizeLinear, DequantizeLinear."""

    X, SCALE, ZERO = range(3)


class Slice:
    """Slice from opset 10 on."""

    DATA, STARTS, ENDS, AXES, STEPS = range(5)


class Pad:
    """Pad from opset 11 on."""

    DATA, AMOUNTS, VALUE, AXES = range(4)


class Resize:
    """Resize from opset 11 on."""

    X, REGION, SCALES, SIZES = range(4)


class Loop:
    """Loop: what is carried comes after these two."""

    COUNT, CONDITION, CARRIED = range(3)


class CropPad:
    """CenterCropPad."""

    X, SHAPE = range(2)


class Col2Im:
    """Col2Im."""

    COLUMNS, IMAGE, BLOCK = range(3)


class Compress:
    """Compress."""

    DATA, CONDITION = range(2)


DFT_AXIS = 2
"""Of DFT from opset 20 on; an attribute before."""


class CausalConv:
    """CausalConvWithState, ONNX's and that of com.microsoft."""

    X, WEIGHT, BIAS, PAST = range(4)
