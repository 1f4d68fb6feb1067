"""How the values of a metric are written: shares as percent and their changes in points, other numbers with their unit.

Knows numbers and words, no model.
"""

from __future__ import annotations

SHARE = "share"
"""The unit of what lies between 0 and 1 and is a part of a whole."""


def written(value: float, unit: str) -> str:
    """94.65% of a share; else the number with its unit, where it has one."""
    return f"{value:.2%}" if unit == SHARE else f"{value + 0.0:.4g} {unit}".rstrip()


def changed(difference: float, unit: str, interval: tuple[float, float] | None = None) -> str:
    """A difference of two values with its sign, in points where these are shares, and the interval that it lies in."""
    word = "points" if unit == SHARE else unit
    within = f" ({_signed(interval[0], unit)} to {_signed(interval[1], unit)})" if interval else ""
    return f"{_signed(difference, unit)} {word}".rstrip() + within


def amount(difference: float, unit: str) -> str:
    """A difference whose sign is said in words."""
    return changed(abs(difference), unit).removeprefix("+")


def _signed(difference: float, unit: str) -> str:
    """A number with its sign; what rounds to nothing has none."""
    text = f"{100 * difference:+.2f}" if unit == SHARE else f"{difference:+.3g}"
    return text[1:] if float(text) == 0 else text


def duration(ms: float) -> str:
    """Milliseconds as they are written."""
    return f"{ms / 1e3:.3g} s" if ms >= 1e3 else f"{ms:.3g} ms"
