"""Sizes as exact expressions over the open dimensions of the inputs: polynomials with integer coefficients.

A `Size` is a sum of products of atoms: symbols (open dimensions), sizes that depend on data, and what has no closed
form (a rounded quotient, a minimum). Two sizes are equal when they are written the same; nothing is concluded from
numbers that were tried. Knows integers, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from typing import Any

MOST_TERMS = 32
MOST_FACTORS = 12
LONGEST = 2000
"""Longer sums, products and (in characters) atoms are not followed: `Lost`."""
_PLAIN = re.compile(r"[^\W\d]\w*")


class Lost(ArithmeticError):
    """The expression has no form that is followed."""


@dataclass(frozen=True)
class Atom:
    """A factor of a term. kind: symbol (args: its name), unknown (the tensor and axis of a size that data decides), or
    floor, trunc, min, max over expressions."""

    kind: str
    args: tuple[Any, ...]

    @cached_property
    def text(self) -> str:
        """No two atoms are written the same: names that look like expressions are quoted."""
        if self.kind == "symbol":
            return self.args[0] if _PLAIN.fullmatch(self.args[0]) else repr(self.args[0])
        return f"{self.kind}({', '.join(repr(a) if isinstance(a, str) else str(a) for a in self.args)})"

    @cached_property
    def least(self) -> float:
        """A lower bound: an open dimension has one position at least, what data decides may be empty."""
        bounds = [lower(a) for a in self.args] if self.kind in ("floor", "trunc", "min", "max") else []
        match self.kind:
            case "symbol":
                return 1
            case "unknown":
                return 0
            case "min":
                return min(bounds)
            case "max":
                return max(bounds)
        q = self.args[1]
        if bounds[0] < 0 or bounds[1] <= 0:
            return -inf
        return bounds[0] // q if isinstance(q, int) else 0

    def at(self, sizes: Mapping[str, int]) -> int | None:
        """The value where the symbols have these sizes; None where it depends on data, or divides by zero."""
        if self.kind == "symbol":
            return sizes.get(self.args[0])
        if self.kind == "unknown":
            return None
        numbers = [evaluated(a, sizes) for a in self.args]
        if any(n is None for n in numbers):
            return None
        known = [n for n in numbers if n is not None]
        if self.kind in ("min", "max"):
            return min(known) if self.kind == "min" else max(known)
        p, q = known
        if q == 0:
            return None
        return p // q if self.kind == "floor" or (p < 0) == (q < 0) else -(-p // q)


Monomial = tuple[Atom, ...]
"""A product of atoms, sorted by their text; the empty one is 1."""


@dataclass(frozen=True, eq=False)
class Size:
    """A size that is not one number. terms: (product, coefficient), sorted; never a constant alone."""

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def text(self) -> str:
        """As it is written, by which sizes are told apart."""
        parts = []
        for monomial, c in self.terms:
            factors = [*([str(c)] if c != 1 or not monomial else []), *(a.text for a in monomial)]
            parts.append("*".join(factors))
        return parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.text == other.text

    @cached_property
    def _hash(self) -> int:
        return hash(self.text)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def least(self) -> float:
        """A lower bound, whatever the symbols are."""
        total = 0.0
        for monomial, c in self.terms:
            bounds = [a.least for a in monomial]
            if monomial and (c < 0 or min(bounds) < 0):
                return -inf
            total += c * prod(bounds)
        return total

    @cached_property
    def atoms(self) -> frozenset[Atom]:
        """All atoms in it, those inside rounded quotients and minima too."""
        own = {a for m, _ in self.terms for a in m}
        inner = (x.atoms for a in own for x in a.args if isinstance(x, Size))
        return frozenset(own).union(*inner)

    @property
    def symbols(self) -> set[str]:
        """The names of the open dimensions in it."""
        return {a.args[0] for a in self.atoms if a.kind == "symbol"}

    def __add__(self, other: Dim) -> Dim:
        return summed([*self.terms, *terms_of(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return Size(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        return summed(
            (tuple(sorted((*m, *n), key=lambda a: a.text)), c * d)
            for m, c in self.terms for n, d in terms_of(other)
        )  # fmt: skip

    __rmul__ = __mul__


Dim = int | Size


def symbol(name: str) -> Size:
    """An open dimension of an input."""
    return atom_of("symbol", name)


def unknown(tensor: str, axis: int) -> Size:
    """A size that depends on what is in tensors: it has a name, so that it can be equal to itself, but no value."""
    return atom_of("unknown", tensor, axis)


def atom_of(kind: str, *args: Any) -> Size:
    """One atom as a size; Lost where it is too long to be followed."""
    atom = Atom(kind, args)
    if len(atom.text) > LONGEST:
        raise Lost("too long")
    return Size((((atom,), 1),))


def name_of(x: Dim) -> str | None:
    """The name of an open dimension that stands alone."""
    terms = terms_of(x)
    alone = len(terms) == 1 and terms[0][1] == 1 and len(terms[0][0]) == 1 and terms[0][0][0].kind == "symbol"
    return str(terms[0][0][0].args[0]) if alone else None


def terms_of(x: Dim) -> tuple[tuple[Monomial, int], ...]:
    """(product, coefficient) of every term."""
    return x.terms if isinstance(x, Size) else (((), int(x)),)


def summed(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    """The sum of terms in its one form: a number if it is one. Lost where it is too long to be followed."""
    found: dict[Monomial, int] = {}
    for m, c in terms:
        found[m] = found.get(m, 0) + c
    left = {m: c for m, c in found.items() if c}
    if len(left) > MOST_TERMS or max(map(len, left), default=0) > MOST_FACTORS:
        raise Lost("too long")
    if left.keys() <= {()}:
        return left.get((), 0)
    return Size(tuple(sorted(left.items(), key=lambda t: ([a.text for a in t[0]] == [], [a.text for a in t[0]]))))


def lower(x: Any) -> float:
    """A lower bound of a size, minus infinity where none is known."""
    return x.least if isinstance(x, Size) else float(x)


def evaluated(x: Dim, sizes: Mapping[str, int]) -> int | None:
    """The value where the symbols have these sizes; None where it depends on data."""
    if not isinstance(x, Size):
        return int(x)
    total = 0
    for monomial, c in x.terms:
        for atom in monomial:
            n = atom.at(sizes)
            if n is None:
                return None
            c *= n
        total += c
    return total


def product(sizes: Iterable[Dim]) -> Dim:
    """Of all of them; 1 of none."""
    out: Dim = 1
    for n in sizes:
        out = out * n
    return out


def minimum(p: Dim, q: Dim) -> Dim:
    """The smaller one, where it is known which that is for all sizes; else an atom."""
    return _extreme("min", p, q)


def maximum(p: Dim, q: Dim) -> Dim:
    """The larger one, where it is known which that is for all sizes; else an atom."""
    return _extreme("max", p, q)


def _extreme(kind: str, p: Dim, q: Dim) -> Dim:
    small, large = (q, p) if lower(p - q) >= 0 else (p, q)
    if lower(large - small) >= 0:
        return small if kind == "min" else large
    return atom_of(kind, *sorted((p, q), key=str))


def compared(p: Dim, q: Dim) -> int | None:
    """1, 0 or -1 where p is larger, equal or smaller whatever the sizes are; None where that is not known."""
    d = p - q
    if d == 0:
        return 0
    return 1 if lower(d) > 0 else -1 if lower(-d) > 0 else None


def joint(a: Dim | None, b: Dim | None) -> Dim | None:
    """The size of two axes that are broadcast against each other."""
    if a == 1 or b == 1:
        return b if a == 1 else a
    if a == b or isinstance(a, int):  # the other one is as large, or one
        return a
    return b if isinstance(b, int) else None
