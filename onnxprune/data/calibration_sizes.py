"""At which sizes to feed the inputs of a model, where it leaves them open. Knows inputs and their sizes, no units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnxprune.data.inputs import Input, describe, real_inputs
from onnxprune.model import Model
from onnxprune.shapes import Inputs, Shapes, plan_sizes

TOKENS = 64
"""Length of a text where the model leaves it open: more tokens say more, and models of short texts still take it."""
LINE = 48
"""Height of a line of text where the model leaves it open."""
WAVES = (4096, 640, 576, 512, 400, 320, 256)
"""Lengths of sound to try where the model leaves it open: much, or the pieces that models take which go from one to the
next (32 or 36 ms at 16 kHz, and such)."""


def sizes(
    model: Model, shapes: Shapes, batch: int, given: Mapping[str, Sequence[int]], tokens: int = TOKENS
) -> Iterator[Inputs]:
    """Sizes of all inputs to try in turn, for `batch` samples where the model leaves their number open: first the most
    telling ones, with texts of so many `tokens`, then those that shape inference found to fit."""
    axes = plan_sizes(real_inputs(model), given)
    specs = describe(model, shapes)
    open_axes = [(spec, axes.symbols(spec.name)) for spec in specs if spec.name in axes.axes]
    tried: list[Inputs] = []
    for trial in (fit for t in _trials(open_axes, axes.roles, shapes, batch, tokens) for fit in (t, shapes.fitted(t))):
        found = axes.shapes(trial)
        if found not in tried and all(min(found.get(s.name, ()), default=1) >= (s.kind != "cache") for s in specs):
            tried.append(found)
            yield found


def _trials(
    open_axes: Sequence[tuple[Input, Mapping[int, str]]],
    roles: Mapping[str, str],
    shapes: Shapes,
    batch: int,
    tokens: int,
) -> list[dict[str, int]]:
    """One number for each symbol, several times: the most telling ones first and those of shape inference last."""
    probe = {s: shapes.inputs[0][spec.name][k] for spec, symbols in open_axes for k, s in symbols.items()}
    batches = {s: batch for s, role in roles.items() if role == "batch"}
    best, short = dict(probe), [dict(probe) for _ in WAVES[1:]]
    late: dict[str, int] = {}  # the second axis of a state counts samples, as most exporters lay it out
    for spec, symbols in open_axes:
        inner = {k: s for k, s in symbols.items() if s not in batches}
        best |= _telling(spec, shapes, inner, roles, tokens)
        if spec.kind == "sound":
            for trial, length in zip(short, WAVES[1:], strict=True):
                trial |= dict.fromkeys(inner.values(), length)
        if spec.batch == 1 and 1 in inner:
            late[inner[1]] = batch
    return [chosen | batches | more for chosen in (best, *short, probe) for more in (late, {})] + [probe]


def _telling(
    spec: Input, shapes: Shapes, symbols: Mapping[int, str], roles: Mapping[str, str], tokens: int
) -> dict[str, int]:
    """The most telling sizes of the open axes of one input; `symbols` by axis."""
    match spec.kind:
        case "image":
            return _image_size(spec, shapes, symbols)
        case "tokens" | "mask" | "positions":
            return {s: tokens for s in symbols.values() if roles[s] == "token"}
        case "sound":
            return dict.fromkeys(symbols.values(), WAVES[0])
        case "cache":  # nothing went before
            return {s: 0 for k, s in symbols.items() if len(symbols) == 1 or k == len(spec.axes) - 2}
    return {}


def _image_size(spec: Input, shapes: Shapes, symbols: Mapping[int, str]) -> dict[str, int]:
    """A width that alone is open is that of a line of text, and so are both where much less is left of the height;
    else the image is square."""
    rank = len(spec.axes)
    rows, columns = (rank - 2, rank - 1) if spec.channel == 1 else (rank - 3, rank - 2)
    height = spec.axes[rows]
    if height and columns in symbols:
        return {symbols[columns]: 4 * height}
    if rows not in symbols:
        return {}
    if columns in symbols and _reads_lines(spec, shapes, rows, columns):
        return {symbols[rows]: LINE, symbols[columns]: 4 * LINE}
    return dict.fromkeys((symbols[k] for k in (rows, columns) if k in symbols), _square(spec, shapes, rows))


def _square(spec: Input, shapes: Shapes, rows: int) -> int:
    """The side that leaves seven or eight positions where the network is coarsest, as 224 does for the usual stride of
    32."""
    size = shapes.inputs[0][spec.name][rows]
    maps = [(dims, shapes.static(name) or ()) for name, dims in shapes.probe[0].items() if len(dims) == len(spec.axes)]
    left = [d for dims, static in maps for d, fixed in zip(dims[1:], static[1:], strict=False) if d and fixed is None]
    stride = max(1, size // max(min(left, default=size), 1))
    return 224 if stride >= 16 else max(32, 8 * stride)


def _reads_lines(spec: Input, shapes: Shapes, rows: int, columns: int) -> bool:
    """Whether the height shrinks to less than half of what the width does: writing goes on to the right."""
    height, width = (shapes.inputs[0][spec.name][k] for k in (rows, columns))
    left = [dims for name, dims in shapes.probe[0].items() if len(dims) == len(spec.axes)
            and dims[rows] and dims[columns] and (shapes.static(name) or dims)[columns] is None]  # fmt: skip
    if not left:
        return False
    high, wide = (min(dims[k] or 1 for dims in left) for k in (rows, columns))
    return height * wide >= 2 * width * high
