"""Data in any of the forms that --calib takes, as ONNX Runtime's quantiser wants it. Knows inputs, no units.

The other way round nothing is needed: what has a `get_next`, as a CalibrationDataReader of ONNX Runtime has, is one of
the forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Unpack

from onnxprune.data import Feed, calibration
from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.options import OptionKeywords, Options, differing, given, listed
from onnxprune.shapes import infer

READS = (
    "calib", "calib_samples", "calib_batch", "mean", "std", "scale", "tokenizer", "text_length", "memory",
    "input_shapes", "seed", "providers",
)  # fmt: skip
"""Options that say which inputs there are and how they are read."""


class CalibrationReader:
    """A CalibrationDataReader of ONNX Runtime: `quantize_static(IN, OUT, CalibrationReader(IN, "data.npz"))`.

    It gives what `prune(IN, calib=...)` would look at: at most `calib_samples` samples in batches of `calib_batch`, in
    an order of their own, in the types of the model's inputs; made-up ones where there is no data, which `source` then
    says. ONNX Runtime takes whatever has a `get_next` for a reader, so that none of its classes is needed here."""

    def __init__(
        self, model: Any, data: Any = None, options: Options | None = None, **keywords: Unpack[OptionKeywords]
    ) -> None:
        """model: a path, bytes, a ModelProto, a graphsurgeon Graph or a `Model`. data: what --calib takes. Keywords
        are those fields of `Options` that are about inputs. UsageError for another, and where the data does not fit."""
        if unread := differing({**keywords}) - {*READS}:
            raise UsageError(f"{min(unread)} says nothing about inputs, and nothing is pruned here; {listed(READS)} do")
        options = given(options, keywords)
        if data is not None:
            options = replace(options, calib=data)
        source = Model.load(model).normalised()
        found = calibration(source, infer(source, options.input_shapes, options.memory_limit), options)
        self.feeds: tuple[Feed, ...] = found.feeds
        self.samples, self.source = found.samples, found.source
        self.set_range(0, len(self.feeds))

    def get_next(self) -> Feed | None:
        """The next batch, an array for each input; None behind the last."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Begin again."""
        self.set_range(self._first, self._last)

    def set_range(self, start_index: int, end_index: int) -> None:
        """From here on only batches `start_index` up to `end_index`, which is not among them."""
        if not 0 <= start_index <= end_index:
            raise UsageError(f"no range of batches begins at {start_index} and ends before {end_index}")
        self._first, self._last = start_index, end_index
        self._left: Iterator[Feed] = iter(self.feeds[start_index:end_index])

    def __len__(self) -> int:
        """How many batches there are in all."""
        return len(self.feeds)

    def __iter__(self) -> Iterator[Feed]:
        """What is left of the batches; a for loop takes them as `get_next` would."""
        return self._left
