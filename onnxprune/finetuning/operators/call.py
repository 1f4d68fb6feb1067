"""What a torch form of an operator is told of its node. Knows attributes, no graph and no tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class NoTorchForm(Exception):
    """What is asked of an operator is something that its torch form does not do; the text says what."""


@dataclass(frozen=True)
class Call:
    """One node: its operator, attributes by name (texts as str), how many outputs it has, and the version of its
    operator set."""

    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 17

    def __call__(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default where the node has none of that name."""
        return self.attributes.get(name, default)

    def refuse(self, what: str) -> None:
        """Say that `what` has no torch form."""
        raise NoTorchForm(what)


Form = Callable[..., Any]
"""`form(call, *inputs)`: tensors, None where an optional input is missing; one tensor, or a tuple of all outputs."""
