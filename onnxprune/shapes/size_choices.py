"""Numbers for the open dimensions of the inputs: which to try, in which order.

Knows the names of dimensions, no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxprune.shapes.symbols import Dim, evaluated, name_of

Role = Literal["batch", "token", "length", "space", "volume"]
Assignment = dict[str, int]
"""One number for each symbol."""

_LADDER: dict[Role, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "batch": ((2, 4, 8, 1), (3, 6, 16, 2)),
    "token": ((16, 8, 4, 32, 64, 128, 512), (21, 24, 11, 5, 12, 128, 1024)),
    "length": ((16, 64, 256, 1024, 4096, 16000), (21, 24, 83, 128, 320, 1600, 5000, 20000)),
    "space": ((64, 32, 128, 224, 256, 512), (83, 96, 128, 160, 192, 448, 320, 24)),
    "volume": ((16, 32, 64, 96, 128), (21, 32, 48, 64, 96, 24)),
}
"""For the first and the second probe, the likeliest first. The second begins with an odd number, so that what is
rounded up to a multiple shows. A side of a volume is shorter than one of an image: there are three of them."""
_LIFTS: dict[Role, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "space": ((60, 94, 220), (0, 64)),
    "volume": ((28, 60, 94), (0, 32)),
}
"""What makes small sides large enough to pool: odd or even ones as they are, and before they become multiples of 32."""
_STEPS: dict[Role, int] = {"batch": 2, "token": 4, "length": 4, "space": 16, "volume": 16}
"""By how much one side is longer than the one before it; images whose side is a multiple of 32 keep to such."""
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
NEAR, FAR = 256, 1 << 16
"""A size that has to fit others is looked for so near, and among multiples of what has to divide it so far."""


@dataclass(frozen=True)
class SizePlan:
    """The dims of every input and the role of every symbol in them. queries: numbers that a mask may be longer by than
    the keys of the past. bound: the declared symbols that were given a size."""

    axes: dict[str, tuple[Dim, ...]]
    roles: dict[str, Role]
    queries: tuple[int, ...]
    bound: Mapping[str, int]

    def shapes(self, sizes: Assignment) -> dict[str, tuple[int, ...]]:
        """The shape of every input; 0 for a size that does not come out, such as a quotient by zero."""
        return {n: tuple(evaluated(d, sizes) or 0 for d in a) for n, a in self.axes.items()}

    def symbols(self, name: str) -> dict[int, str]:
        """The open dimensions of an input, by axis."""
        named = ((k, name_of(d)) for k, d in enumerate(self.axes[name]))
        return {k: s for k, s in named if s is not None}

    def possible(self, sizes: Assignment) -> bool:
        """Whether no input is left without elements."""
        return all(d > 0 for s in self.shapes(sizes).values() for d in s)

    def more(self, first: Assignment) -> Iterator[list[Assignment]]:
        """Sizes at which a proof is worth something beside the first: ones, large, unequal and equal primes, and
        others. Each as a list of what to try in its place, the likeliest first."""
        symbols = list(self.roles)
        primes = [_PRIMES[k % len(_PRIMES)] for k in range(len(symbols))]
        batches = [s for s in symbols if self.roles[s] == "batch"]
        yield self._lifted(dict.fromkeys(symbols, 1))
        yield self._large(first)
        yield self._lifted(dict(zip(symbols, reversed(primes), strict=True)))
        yield self._lifted(dict.fromkeys(symbols, 3))
        yield self._lifted(dict(zip(symbols, primes, strict=True)))
        yield self._lifted({s: 1 if s in batches else 7 + k for k, s in enumerate(symbols)})
        yield self._lifted({s: 4 + k if s in batches else 13 for k, s in enumerate(symbols)})
        yield self._lifted(dict.fromkeys(symbols, 5))
        yield self._lifted(dict.fromkeys(symbols, 7))

    def _lifted(self, sizes: Assignment) -> list[Assignment]:
        """An image is larger than a text is long: also with odd and even sides that leave something to pool."""
        lifts = {s: _LIFTS[role] for s, role in self.roles.items() if role in _LIFTS}
        if not lifts:
            return [sizes]
        odd = [{s: sizes[s] + by[0][k] for s, by in lifts.items()} for k in range(3)]
        even = [{s: -(-(sizes[s] + by[1][k]) // 32) * 32 for s, by in lifts.items()} for k in range(2)]
        return [sizes, *({**sizes, **sides} for sides in (*odd, *even))]

    def _large(self, first: Assignment) -> list[Assignment]:
        """Sizes that are large, unequal or as they are; what is long is so in one sample: a proof runs it."""
        alone = all(role == "batch" for role in self.roles.values())
        large = {"batch": 8 if alone else 1, "token": 128, "length": 512, "space": 0, "volume": 0}
        out: list[Assignment] = []
        for shrink in (1, 2):
            tops = {s: max(large[r] // shrink, 1 if r == "batch" else 2 * first[s] // shrink)
                    for s, r in self.roles.items()}  # fmt: skip
            out += [{s: n + k for k, (s, n) in enumerate(tops.items())}, tops]
        return out

    def fitted(self, sizes: Assignment, holds: Sequence[Callable[[Assignment], bool]], divisor: int) -> Assignment:
        """Sizes near these at which all of `holds` do, as far as they are found by moving one symbol at a time; batches
        last. divisor: something has to be a multiple of it."""
        order = sorted(self.roles, key=lambda s: self.roles[s] == "batch")
        for _ in range(2):
            wrong = [h for h in holds if not h(sizes)]
            for s in order:
                if not wrong:
                    return sizes
                for n in _near(sizes[s], divisor):
                    moved = {**sizes, s: n}
                    if not any(h(moved) for h in wrong):  # as most: the others need not be asked
                        continue
                    left = [h for h in holds if not h(moved)]
                    if len(left) < len(wrong) and self.possible(moved):
                        sizes, wrong = moved, left
                        if not left:
                            return sizes
        return sizes

    def candidates(self, probe: int) -> Iterator[Assignment]:
        """Sizes to try: every symbol its own number; then fewer distinct ones, and other magnitudes."""
        seen: list[Assignment] = []
        rungs = max((len(_LADDER[r][probe]) for r in self.roles.values() if r != "batch"), default=1)
        steps = [(0, rung) for rung in range(rungs)] + [(b, 0) for b in range(1, len(_LADDER["batch"][probe]))]
        for batch, rung in steps:
            for sizes in self._variants(probe, batch, rung):
                if sizes not in seen and self.possible(sizes):
                    seen.append(sizes)
                    yield sizes

    def _variants(self, probe: int, batch: int, rung: int) -> Iterator[Assignment]:
        def size(symbol: str, distinct: bool, role: Role | None = None) -> int:
            role = role or self.roles[symbol]
            ladder = _LADDER[role][probe]
            base = ladder[min(batch if role == "batch" else rung, len(ladder) - 1)]
            place = [s for s, r in self.roles.items() if r == role].index(symbol) if distinct else 0
            step = _STEPS[role]
            if role in _LIFTS:
                return base + place * (32 if base % 32 == 0 else step)
            return base + place * (step + probe)

        others = [s for s, r in self.roles.items() if r != "batch"]
        yield {s: size(s, True) for s in self.roles}
        yield {s: size(s, r != "batch") for s, r in self.roles.items()}
        same = {s: size(s, False) for s in self.roles}
        yield same
        if len(others) > 1 and "token" in self.roles.values():
            # Keys and values of the past have four axes but are as long as a text; a mask is longer by the query.
            text = {**same, **{s: size(s, False, "token") for s in others}}
            yield text
            yield from ({**text, s: text[s] + q} for q in self.queries for s in others)


def _near(n: int, divisor: int) -> Iterator[int]:
    """Sizes, the nearest first, and multiples of the divisor."""
    for step in range(1, NEAR):
        yield from (m for m in (n + step, n - step) if m > 0)
    yield from range(divisor, FAR if divisor > 1 else 0, divisor)


def other_sizes(plan: SizePlan, first: Assignment) -> list[Assignment]:
    """Likely sizes that differ from the first in every symbol, or else in as many as can be."""
    candidates = [s for s in plan.candidates(1) if all(s[n] != first.get(n) for n in s)]
    batch = [s for s, r in plan.roles.items() if r == "batch"]
    rest = [s for s in first if s not in batch]
    for varied in (batch, rest):
        if batch and rest:
            candidates += [{**first, **{s: c[s] for s in varied}} for c in candidates]
    return candidates
