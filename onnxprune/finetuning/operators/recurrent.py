"""Recurrent layers, step by step as ONNX defines them. Knows tensors, no graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onnxprune.finetuning.operators.call import Call, Form

Tensor = Any
State = tuple[Any, ...]
Step = Callable[[Any, State], State]
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu,
}  # fmt: skip


def _functions(call: Call, direction: int) -> list[Callable[[Tensor], Tensor]]:
    """The activations of one direction."""
    defaults = DEFAULTS[call.op]
    names = list(call("activations") or [])[direction * len(defaults) :][: len(defaults)] or defaults
    for name in names:
        if name.lower() not in FUNCTIONS or call("clip"):
            call.refuse(f"activation {name}, or clip")
    return [FUNCTIONS[name.lower()] for name in names]


def _lstm(call: Call, d: int, r: Tensor, rb: Tensor, peep: Tensor | None) -> Step:
    f, g, h = _functions(call, d)
    pi, po, pf = peep[d].chunk(3) if peep is not None else (0.0, 0.0, 0.0)

    def step(x: Tensor, state: State) -> State:
        hidden, cell = state
        i, o, forget, c = (x + hidden @ r.T + rb).chunk(4, 1)
        i = f(i + pi * cell)
        forget = 1 - i if call("input_forget", 0) else f(forget + pf * cell)
        cell = forget * cell + i * g(c)
        return f(o + po * cell) * h(cell), cell

    return step


def _gru(call: Call, d: int, r: Tensor, rb: Tensor, peep: Tensor | None) -> Step:
    f, g = _functions(call, d)
    size = r.shape[1]

    def step(x: Tensor, state: State) -> State:
        (hidden,) = state
        gates = x[:, : 2 * size] + hidden @ r[: 2 * size].T + rb[: 2 * size]
        z, reset = f(gates).chunk(2, 1)
        if call("linear_before_reset", 0):
            inner = reset * (hidden @ r[2 * size :].T + rb[2 * size :])
        else:
            inner = (reset * hidden) @ r[2 * size :].T + rb[2 * size :]
        return ((1 - z) * g(x[:, 2 * size :] + inner) + z * hidden,)

    return step


def _rnn(call: Call, d: int, r: Tensor, rb: Tensor, peep: Tensor | None) -> Step:
    (f,) = _functions(call, d)
    return lambda x, state: (f(x + state[0] @ r.T + rb),)


STEPS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _recurrent(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, c: Tensor | None = None, peep: Tensor | None = None,
) -> Any:  # fmt: skip
    """x [steps, batch, width], or with layout 1 the batch first; w [directions, gates * size, width]."""
    first = bool(call("layout", 0))
    x = x.transpose(0, 1) if first else x
    directions, size, given = r.shape[0], r.shape[2], [h, c][: 2 if call.op == "LSTM" else 1]
    start = [
        x.new_zeros(directions, x.shape[1], size) if s is None else s.transpose(0, 1) if first else s for s in given
    ]
    outputs, ends = [], []
    for d in range(directions):
        wb, rb = b[d].chunk(2) if b is not None else (0.0, x.new_zeros(r.shape[1]))
        backwards = call("direction", "forward") == "reverse" or d == 1
        step, projected = STEPS[call.op](call, d, r[d], rb, peep), x @ w[d].T + wb
        made, end = _walk(step, projected, tuple(s[d] for s in start), lengths, backwards)
        outputs.append(made)
        ends.append(end)
    y = torch.stack(outputs, 1)
    states = [torch.stack(parts) for parts in zip(*ends, strict=True)]
    if first:
        y, states = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in states]
    found = (y, *states)
    return found[: call.outputs] if call.outputs > 1 else y


def _walk(step: Step, x: Tensor, state: State, lengths: Tensor | None, backwards: bool) -> tuple[Tensor, State]:
    """All steps of one direction; a sequence that has ended gives zeros and keeps its state."""
    made: list[Any] = [None] * len(x)
    for t in reversed(range(len(x))) if backwards else range(len(x)):
        after = step(x[t], state)
        made[t] = after[0]
        if lengths is not None:
            on = (t < lengths.to(x.device))[:, None]
            made[t] = torch.where(on, after[0], torch.zeros_like(after[0]))
            after = tuple(torch.where(on, a, s) for a, s in zip(after, state, strict=True))
        state = after
    return torch.stack(made), state


FORMS: dict[str, Form] = dict.fromkeys(DEFAULTS, _recurrent)
