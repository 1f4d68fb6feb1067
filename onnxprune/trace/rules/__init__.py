"""The registry: every operator that tracing understands, in one table. Who is not in it freezes what reaches it.

Knows the names of operators, no graph.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.trace.op import Op
from onnxprune.trace.rules import (
    attention,
    control,
    experts,
    fused,
    fused_attention,
    joining,
    learned,
    linear,
    lookup,
    movement,
    norm,
    packed,
    pointwise,
    positions,
    recurrent,
    reshaping,
    rotary,
    sequences,
    shared_keys,
    states,
)
from onnxprune.trace.rules.base import first_only, opaque, unary
from onnxprune.trace.rules.base import pointwise as broadcast

UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu
HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin
Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Bernoulli RandomNormalLike RandomUniformLike
ai.onnx.ml::Binarizer com.microsoft::Gelu com.microsoft::QuickGelu com.microsoft::SampleOp Affine ParametricSoftplus
Scale ScaledTanh"""
BROADCAST = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max
Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor com.microsoft::BiasGelu com.microsoft::FastGelu
com.microsoft::QLinearAdd com.microsoft::QLinearMul com.microsoft::QLinearWhere"""
FIRST = "Clip CastLike com.microsoft::QLinearSigmoid com.microsoft::QLinearLeakyRelu com.microsoft::ScaledSiLU"
POOLS = "AveragePool Crop LpPool MaxPool com.microsoft::NhwcMaxPool com.microsoft::QLinearAveragePool"
GLOBAL = "GlobalAveragePool GlobalLpPool GlobalMaxPool com.microsoft::QLinearGlobalAveragePool"
REDUCE = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare"""
SEQUENCES = "SequenceConstruct SequenceInsert SequenceErase SequenceEmpty Optional"


def _table() -> dict[str, Callable[[Op], None]]:
    many: dict[str, Callable[[Op], None]] = {}
    for names, rule in ((UNARY, unary), (BROADCAST, broadcast), (FIRST, first_only), (POOLS, pointwise.pool),
                        (GLOBAL, pointwise.global_pool), (REDUCE, pointwise.reduce)):  # fmt: skip
        many |= dict.fromkeys(names.split(), rule)
    return many | {
        "Conv": linear.conv, "com.microsoft::FusedConv": linear.fused_conv, "ConvTranspose": linear.conv_transpose,
        "DeformConv": linear.deform_conv, "ConvInteger": linear.conv_integer, "QLinearConv": linear.qlinear_conv,
        "com.microsoft::QLinearConv": linear.qlinear_conv, "com.microsoft::NhwcConv": linear.conv,
        "com.microsoft::NhwcFusedConv": linear.fused_conv, "com.microsoft::FusedMatMulActivation": linear.matmul,
        "com.microsoft::QLinearReduceMean": pointwise.qlinear_reduce,
        "Gemm": linear.gemm, "com.microsoft::FusedGemm": linear.gemm, "com.microsoft::QGemm": linear.qgemm,
        "MatMul": linear.matmul, "com.microsoft::FusedMatMul": linear.matmul,
        "com.microsoft::TransposeMatMul": linear.matmul,
        "com.microsoft::DynamicQuantizeMatMul": linear.dynamic_quantize_matmul,
        "com.microsoft::MatMulIntegerToFloat": linear.matmul_integer_to_float,
        "com.microsoft::GatherBlockQuantized": packed.gather_block_quantized,
        "com.microsoft::MoE": experts.moe, "com.microsoft::QMoE": experts.quantised_moe,
        "com.microsoft::MatMulNBits": packed.matmul_nbits,
        "MatMulInteger": linear.matmul_integer, "QLinearMatMul": linear.qlinear_matmul, "Einsum": linear.einsum,
        "LSTM": recurrent.recurrent, "GRU": recurrent.recurrent, "RNN": recurrent.recurrent,
        "BatchNormalization": norm.batch_norm, "InstanceNormalization": norm.instance_norm,
        "LayerNormalization": norm.layer_norm, "SimplifiedLayerNormalization": norm.layer_norm,
        "RMSNormalization": norm.layer_norm, "GroupNormalization": norm.group_norm, "LRN": norm.local_response,
        "com.microsoft::SkipLayerNormalization": norm.skip_layer_norm,
        "com.microsoft::SkipSimplifiedLayerNormalization": norm.skip_layer_norm,
        "com.microsoft::EmbedLayerNormalization": norm.embed_layer_norm,
        "MeanVarianceNormalization": norm.mean_variance_norm, "LpNormalization": norm.lp_norm,
        "Softmax": pointwise.softmax, "LogSoftmax": pointwise.softmax, "Hardmax": pointwise.softmax,
        "com.microsoft::QLinearSoftmax": pointwise.softmax,
        "CumSum": pointwise.cumsum, "CumProd": pointwise.cumsum, "ReverseSequence": pointwise.reverse_sequence,
        "ArgMax": pointwise.arg, "ArgMin": pointwise.arg, "TopK": pointwise.top_k,
        "Trilu": pointwise.trilu, "com.microsoft::Trilu": pointwise.trilu,
        "Dropout": pointwise.dropout, "MaxUnpool": pointwise.unpool,
        "RoiAlign": pointwise.roi_pool, "MaxRoiPool": pointwise.roi_pool,
        "Resize": pointwise.resize, "Upsample": pointwise.resize, "GridSample": pointwise.grid_sample,
        "QuantizeLinear": pointwise.quantize, "DequantizeLinear": pointwise.quantize,
        "com.microsoft::QuantizeLinear": pointwise.quantize, "com.microsoft::DequantizeLinear": pointwise.quantize,
        "DynamicQuantizeLinear": pointwise.dynamic_quantize, "ImageScaler": pointwise.image_scaler,
        "ConstantOfShape": pointwise.constant_of_shape, "Shape": pointwise.shape_of,
        "Reshape": reshaping.reshape, "Flatten": reshaping.reshape,
        "Transpose": movement.transpose, "Squeeze": movement.squeeze, "Unsqueeze": movement.unsqueeze,
        "Slice": movement.slice_, "Expand": movement.expand, "Tile": movement.tile, "Pad": movement.pad,
        "DepthToSpace": movement.depth_to_space, "SpaceToDepth": movement.space_to_depth,
        "Concat": joining.concat, "com.microsoft::QLinearConcat": joining.qlinear_concat, "Split": joining.split,
        "Gather": lookup.gather, "GatherElements": lookup.gather_elements, "GatherND": lookup.gather_nd,
        "ScatterElements": lookup.gather_elements, "Scatter": lookup.gather_elements, "ScatterND": lookup.scatter_nd,
        "Attention": attention.attention, "com.microsoft::Attention": fused_attention.fused,
        "com.microsoft::DecoderMaskedSelfAttention": fused_attention.fused,
        "com.microsoft::PackedAttention": fused_attention.without_padding,
        "com.microsoft::PackedMultiHeadAttention": attention.packed_multi_head,
        "com.microsoft::QAttention": fused_attention.quantised,
        "com.microsoft::MultiHeadAttention": attention.multi_head,
        "com.microsoft::GroupQueryAttention": shared_keys.grouped_query,
        "com.microsoft::SparseAttention": shared_keys.sparse,
        "com.microsoft::DecoderMaskedMultiHeadAttention": attention.decoder_masked,
        "com.microsoft::LinearAttention": states.linear_attention, "TensorScatter": states.tensor_scatter,
        "RotaryEmbedding": rotary.rotary, "com.microsoft::RotaryEmbedding": rotary.contrib_rotary,
        "CenterCropPad": positions.center_crop_pad, "Col2Im": positions.col2im, "Compress": positions.compress,
        "DFT": positions.dft, "Det": positions.square, "com.microsoft::Inverse": positions.square,
        "OneHot": positions.one_hot, "com.microsoft::UnfoldTensor": positions.unfold,
        "com.microsoft::CDist": positions.distances, "com.microsoft::GatedAdd": fused.gated_add,
        "com.microsoft::GatedRMSNorm": fused.gated_rms_norm,
        "com.microsoft::LinearAttentionGate": fused.linear_attention_gate,
        "CausalConvWithState": fused.causal_conv, "com.microsoft::CausalConvWithState": fused.causal_conv,
        "com.microsoft::ConvTransposeWithDynamicPads": linear.conv_transpose_padded,
        "com.microsoft::CropAndResize": pointwise.roi_pool, "com.microsoft::ExpandDims": movement.unsqueeze,
        "com.microsoft::GatherND": lookup.gather_nd, "com.microsoft::GridSample": pointwise.grid_sample,
        "com.microsoft::Pad": movement.pad,
        "com.microsoft::QEmbedLayerNormalization": norm.embed_layer_norm,
        "ai.onnx.ml::Scaler": learned.per_column("scale", "offset"),
        "ai.onnx.ml::Imputer": learned.per_column("imputed_value_floats", "imputed_value_int64s"),
        "ai.onnx.ml::Normalizer": learned.normalizer,
        **dict.fromkeys(("ai.onnx.ml::LinearClassifier", "ai.onnx.ml::LinearRegressor"), learned.linear),
        **dict.fromkeys(("ai.onnx.ml::SVMClassifier", "ai.onnx.ml::SVMRegressor"), learned.machine),
        **dict.fromkeys(("ai.onnx.ml::TreeEnsemble", "ai.onnx.ml::TreeEnsembleClassifier",
                         "ai.onnx.ml::TreeEnsembleRegressor"), learned.trees),
        **dict.fromkeys(SEQUENCES.split(), sequences.put),
        "SplitToSequence": sequences.split, "ConcatFromSequence": sequences.join,
        "SequenceAt": sequences.take, "OptionalGetElement": sequences.take,
        "SequenceLength": sequences.counted, "OptionalHasElement": sequences.counted,
        "If": control.if_, "Loop": control.loop, "Scan": control.scan,
        "NonZero": opaque, "Size": opaque, "Range": opaque, "EyeLike": opaque,
    }  # fmt: skip


RULES = _table()


def elementwise(kind: str) -> bool:
    """Whether an operator (by the key of its rule) works position by position on what it is given."""
    return RULES.get(kind) in (unary, first_only, broadcast)
