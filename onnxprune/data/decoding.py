"""How files of pictures and texts become what the inputs of a model take. Knows the inputs of a model, no units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.data.calibration_sizes import sizes
from onnxprune.data.inputs import Input
from onnxprune.data.picture_files import Decode
from onnxprune.data.pixels import Pixels
from onnxprune.data.ranges import pixels
from onnxprune.data.text import tokenizer_of
from onnxprune.data.text_files import Reading
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.shapes import Inputs, Shapes


@dataclass(frozen=True)
class Decoder:
    """Of one model: for pictures their range of values and size, for texts their tokenizer and length."""

    pictures: Decode
    texts: Reading


def decoder(model: Model, shapes: Shapes, specs: Sequence[Input], options: Options) -> Decoder:
    """For the inputs `specs` of a model, as the options say."""

    def dims(rows: int, tokens: int | None = None) -> Inputs:
        length = {} if tokens is None else {"tokens": tokens}
        return next(sizes(model, shapes, rows, options.input_shapes, **length))

    def pictures(name: str) -> tuple[Pixels, tuple[int, ...]]:
        spec = next(s for s in specs if s.name == name)
        return pixels(model, shapes, spec, options), dims(options.calib_batch)[name]

    file = tokenizer_of(model.path, options.tokenizer)
    return Decoder(pictures, Reading(model, file, options.calib_batch, lambda rows: dims(rows, options.text_length)))
