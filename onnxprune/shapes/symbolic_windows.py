"""Sizes under windows and on grids of pixels: convolutions, pools, resizing. Knows one node, not the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from onnxprune.shapes.node_view import OutputDims, View
from onnxprune.shapes.quotients import ceil_div, floor_div, quotient
from onnxprune.shapes.symbols import Dim, Size


def _windows(v: View, i: int, n: int) -> Iterator[tuple[Dim | None, int, int, int, int, int]]:
    """(size, kernel, stride, dilation, padding before and after) along each of the last `n` axes."""
    dims = v.dims(0) or ()
    kernel = list(v.attr("kernel_shape", [])) or [d for d in (v.dims(i) or ())[-n:] if isinstance(d, int)]
    strides, dilations = list(v.attr("strides", [])) or [1] * n, list(v.attr("dilations", [])) or [1] * n
    pads = list(v.attr("pads", [])) or [0] * (2 * n)
    for k in range(n):
        yield dims[2 + k], kernel[k], strides[k], dilations[k], pads[k], pads[k + n]


def conv(v: View, i: int = 1) -> OutputDims | None:
    """Conv and its integer forms: as many channels as the weight (input `i`, [out, in / group, ..]) has rows."""
    dims, weight = v.dims(0), v.dims(i)
    if dims is None or weight is None:
        return None
    spatial: list[Dim | None] = []
    for size, kernel, stride, dilation, before, after in _windows(v, i, len(dims) - 2):
        spatial.append(None if size is None else _window(v, size, kernel, stride, dilation, before + after))
    return [(dims[0], weight[0], *spatial)]


def _window(v: View, size: Dim, kernel: int, stride: int, dilation: int, pads: int, up: bool = False) -> Dim | None:
    """How often a window fits."""
    mode = v.word("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        return ceil_div(size, stride)
    left = size + (pads if mode == "NOTSET" else 0) - dilation * (kernel - 1) - 1
    v.need("holds", left, 0)
    if not up:
        return floor_div(left, stride) + 1
    exact = quotient(left, stride)  # otherwise a last window may begin in the padding, and is left out
    return None if exact is None else exact + 1


def conv_nested(i: int) -> Callable[[View], OutputDims | None]:
    """A convolution whose weight is input `i`."""
    return lambda v: conv(v, i)


def pool(v: View) -> OutputDims | None:
    """MaxPool, AveragePool and LpPool."""
    dims = v.dims(0)
    if dims is None:
        return None
    up = bool(v.attr("ceil_mode", 0))
    spatial = [
        None if s is None else _window(v, s, k, stride, d, a + b, up)
        for s, k, stride, d, a, b in _windows(v, -1, len(dims) - 2)
    ]
    return [(*dims[:2], *spatial)] * len(v.node.output)


def conv_transpose(v: View) -> OutputDims | None:
    """ConvTranspose: (size - 1) * stride + output_padding + dilation * (kernel - 1) + 1 - pads along an axis."""
    dims, weight = v.dims(0), v.dims(1)
    if dims is None or weight is None or not isinstance(weight[1], int):
        return None
    n = len(dims) - 2
    more = list(v.attr("output_padding", [])) or [0] * n
    wanted = list(v.attr("output_shape", []))
    spatial: list[Dim | None] = []
    for k, (size, kernel, stride, dilation, before, after) in enumerate(_windows(v, 1, n)):
        same = v.word("auto_pad", "NOTSET").startswith("SAME")
        pads = (before + after) if v.word("auto_pad", "NOTSET") == "NOTSET" else 0
        if wanted:
            spatial.append(wanted[k])
        elif size is None:
            spatial.append(None)
        else:
            spread = (size - 1) * stride + more[k] + dilation * (kernel - 1) + 1 - pads
            spatial.append(size * stride if same else spread)
    return [(dims[0], weight[1] * v.attr("group", 1), *spatial)]


def resize(v: View) -> OutputDims | None:
    """Resize and Upsample: the sizes that are given, else the old ones times the scales, rounded down."""
    dims = v.dims(0)
    if dims is None:
        return None
    old = v.node.op_type == "Upsample" or v.opset < 11
    scales = v.entries(1 if old else 2, "scales") if v.given(1 if old else 2) or "scales" in v.attributes else None
    sizes = v.entries(3) if not old and v.given(3) else None
    axes = list(v.attr("axes", range(len(dims))))
    out = list(dims)
    for k, axis in enumerate(axes):
        n = out[axis]
        if sizes:
            stretched = v.word("keep_aspect_ratio_policy", "stretch") == "stretch"
            out[axis] = sizes[k] if stretched else None
        else:
            out[axis] = _scaled(n, scales[k] if scales and k < len(scales) else None)
    return [tuple(out)]


def _scaled(n: Dim | None, scale: Any) -> Dim | None:
    """The size times a factor that a float holds exactly, rounded down."""
    if n is None or scale is None or isinstance(scale, Size):
        return None
    up, down = float(scale).as_integer_ratio()
    return floor_div(n * up, down) if down <= 1 << 8 else None


def depth_to_space(v: View) -> OutputDims | None:
    """DepthToSpace and SpaceToDepth of [n, c, h, w]: blocks of pixels to channels, or back."""
    dims, b = v.dims(0), int(v.attr("blocksize", 1))
    if dims is None or len(dims) != 4:
        return None
    n, c, h, w = dims
    if v.node.op_type == "DepthToSpace":
        return [(n, None if c is None else floor_div(c, b * b), None if h is None else h * b,
                 None if w is None else w * b)]  # fmt: skip
    v.needs.extend(("multiple", x, b) for x in (h, w) if x is not None)
    return [(n, None if c is None else c * b * b, None if h is None else floor_div(h, b),
             None if w is None else floor_div(w, b))]  # fmt: skip
