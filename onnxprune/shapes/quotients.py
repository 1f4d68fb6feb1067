"""Quotients of sizes: exact where the form shows it, rounded in one form otherwise. Knows integers, no tensors."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import gcd

from onnxprune.shapes.symbols import MOST_TERMS, Atom, Dim, Monomial, atom_of, lower, summed, terms_of


def content(x: Dim) -> int:
    """The largest integer that divides a size whatever its symbols are, as far as its form shows."""
    return gcd(*(c for _, c in terms_of(x)))


@lru_cache(1 << 12)
def quotient(p: Dim, q: Dim) -> Dim | None:
    """p / q where q divides p for all sizes, by division of polynomials; None where the form does not show it."""
    if q == 0:
        return None
    left, out = dict(terms_of(p)), dict[Monomial, int]()
    lead, unit = _lead(terms_of(q))
    for _ in range(2 * MOST_TERMS):
        if not left:
            return summed(out.items())
        m, c = _lead(left.items())
        rest = list(m)
        for atom in lead:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % unit:
            return None
        factor, k = tuple(rest), c // unit
        out[factor] = out.get(factor, 0) + k
        for n, d in terms_of(q):
            key = tuple(sorted((*n, *factor), key=lambda a: a.text))
            left[key] = left.get(key, 0) - d * k
            if not left[key]:
                del left[key]
    return None


def _lead(terms: Iterable[tuple[Monomial, int]]) -> tuple[Monomial, int]:
    """The term that leads in a graded order, in which a product's lead is the product of the leads."""
    return max((t for t in terms if t[1]), key=lambda t: (len(t[0]), [a.text for a in t[0]]), default=((), 0))


def floor_div(p: Dim, q: Dim) -> Dim:
    """p / q, rounded towards minus infinity. ZeroDivisionError where q is zero."""
    if isinstance(p, int) and isinstance(q, int):
        return p // q
    if q == 0:
        raise ZeroDivisionError
    exact = quotient(p, q)
    if exact is not None:
        return exact
    if not isinstance(q, int):
        p, q = _without_common_factors(p, q)
        return floor_div(p, q) if isinstance(q, int) else atom_of("floor", p, q)
    if q < 0:
        return floor_div(-p, -q)
    whole = summed((m, c // q) for m, c in terms_of(p) if c % q == 0 or not m)
    rest = p - whole * q
    if isinstance(rest, int):
        return whole + rest // q
    if terms_of(rest)[0][1] < 0:  # one form for what is rounded up: floor(-x / q) = -floor((x + q - 1) / q)
        return whole - floor_div(q - 1 - rest, q)
    common = gcd(content(rest), q)
    rest, q = quotient(rest, common) or 0, q // common
    inner, shift = _rounded(rest)
    if inner is not None:  # floor((floor(a / b) + n) / c) = floor((a + n b) / (b c))
        a, b = inner.args
        return whole + floor_div(a + shift * b, b * q)
    return whole + atom_of("floor", rest, q)


def _without_common_factors(p: Dim, q: Dim) -> tuple[Dim, Dim]:
    """Numerator and denominator without what is a factor of every term of both."""
    terms = [*terms_of(p), *terms_of(q)]
    shared = list(terms[0][0])
    for monomial, _ in terms[1:]:
        rest, found = list(monomial), list[Atom]()
        for atom in shared:
            if atom in rest:
                rest.remove(atom)
                found.append(atom)
        shared = found
    factor = summed([(tuple(shared), gcd(content(p), content(q)))])
    return quotient(p, factor) or 0, quotient(q, factor) or 0


def _rounded(x: Dim) -> tuple[Atom | None, int]:
    """(the atom, the number) where `x` is a quotient by a number, rounded down, plus a number."""
    terms = dict(terms_of(x))
    shift = terms.pop((), 0)
    for monomial, c in terms.items() if len(terms) == 1 else ():
        if c == 1 and len(monomial) == 1 and monomial[0].kind == "floor" and isinstance(monomial[0].args[1], int):
            return monomial[0], shift
    return None, 0


def ceil_div(p: Dim, q: Dim) -> Dim:
    """p / q, rounded towards infinity."""
    return -floor_div(-p, q)


def trunc_div(p: Dim, q: Dim) -> Dim:
    """p / q, rounded towards zero, as integers are divided in a graph."""
    if isinstance(p, int) and isinstance(q, int):
        return p // q if (p < 0) == (q < 0) else -(-p // q)
    exact = quotient(p, q)
    if exact is not None:
        return exact
    if lower(q) > 0 and lower(p) >= 0:
        return floor_div(p, q)
    if lower(q) > 0 and lower(-p) >= 0:
        return -floor_div(-p, q)
    return atom_of("trunc", p, q)


def mod(p: Dim, q: Dim) -> Dim:
    """The remainder that has the sign of q."""
    return p - q * floor_div(p, q)


def parsed(text: str, of: Callable[[str], Dim]) -> Dim:
    """A sum, difference, product or quotient of integers and names, each looked up by `of`. ValueError for others."""

    def value(node: ast.expr) -> Dim:
        match node:
            case ast.Constant(value=int(n)):
                return n
            case ast.Name(id=name):
                return of(name)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = value(left), value(right)
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.FloorDiv() | ast.Div():
                        return floor_div(a, b)
        raise ValueError(f"not an expression over dimensions: {text!r}")

    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"not an expression over dimensions: {text!r}") from error
