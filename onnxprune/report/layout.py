"""How tables in a terminal look. Knows columns and shares, nothing of runs."""

from __future__ import annotations

from rich.table import Table


def table(*columns: str, title: str | None = None) -> Table:
    """A plain table; a column whose name starts with '>' is a column of numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        number = column.startswith(">")
        justify, overflow = ("right", "ellipsis") if number else ("left", "fold")
        made.add_column(column.removeprefix(">"), justify=justify, overflow=overflow, no_wrap=number)  # type: ignore[arg-type]
    return made


def percent(part: int, whole: int) -> str:
    """A share in per cent; "-" of nothing."""
    return f"{part / whole:.1%}" if whole else "-"
