"""Sessions whose runs are bounded in time, where a process is guarded, and whose tensors may stay where they are made.

Knows sessions; of a model what it takes of its feeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from onnxprune import guard
from onnxprune.model import Taken, fitted
from onnxprune.run.installed import onnx_runtime
from onnxprune.run.tensors import DEVICES, HOST, Tensor, on_host, placed, were_given, were_read

RUNNING = "running the model in ONNX Runtime"
WHOLE: Taken = {}
"""What a session takes of its feeds where nothing else is said: all of it."""


@cache
def watched() -> Any:
    """Their class. taken: of a graph that takes less than the original, what it takes of the feeds."""
    session: Any = onnx_runtime().InferenceSession

    class Watched(session):  # type: ignore[misc]
        taken = WHOLE

        def run(self, names: Any, feeds: Mapping[str, Any], *args: Any, **kw: Any) -> Any:
            given = fitted(self.taken, feeds)
            with guard.bounded(RUNNING):
                made = super().run(names, given, *args, **kw)
            were_given(given.values())
            were_read(made)
            return made

        def placed(self, value: Any) -> Any:
            """What `made` is given, where it is read from: an array is brought there once."""
            return placed(value, self._device)

        def made(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
            """As `run`, but each output stays where it is made, as a `Tensor`, and `feeds` may be such, too. What is no
            tensor of numbers comes as Python has it."""
            outputs = [*self._kinds] if names is None else [*names]
            values = {n: self.placed(x) for n, x in fitted(self.taken, feeds).items()}
            if not all(isinstance(x, Tensor) for x in values.values()) or not all(map(self._bindable, outputs)):
                return list(self.run(outputs, {n: on_host(x) for n, x in values.items()}))
            binding = self.io_binding()
            for name, tensor in values.items():
                binding.bind_ortvalue_input(name, tensor.value)
            for name in outputs:
                binding.bind_output(name, HOST if self._kinds[name] == "tensor(bfloat16)" else self._device)
            with guard.bounded(RUNNING):
                self.run_with_iobinding(binding)
            return [Tensor(value) for value in binding.get_outputs()]

        @cached_property
        def _device(self) -> str:
            return DEVICES.get(self.get_providers()[0], HOST)

        @cached_property
        def _kinds(self) -> dict[str, str]:
            return {o.name: o.type for o in self.get_outputs()}

        def _bindable(self, name: str) -> bool:
            kind = self._kinds.get(name, "")
            return kind.startswith("tensor(") and kind != "tensor(string)"

    return Watched
