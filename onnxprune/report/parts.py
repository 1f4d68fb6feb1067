"""The parts of a model as tables in a terminal: groups, residual branches, layers, what is frozen.

Knows results as data and computes none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from onnxprune.report.layout import table
from onnxprune.results import BranchInfo, FrozenInfo, GroupInfo, LayerInfo

ROWS = 20
"""Of a table, where --verbose does not ask for all."""


def print_groups(groups: Sequence[GroupInfo], console: Console, verbose: bool, kept: bool = False) -> None:
    """kept: what is left of each, after a run, and what was asked for by name, if anything was."""
    if not groups:
        return
    asked = kept and any(group.asked for group in groups)
    more = [*([">kept"] if kept else []), *([">asked"] if asked else [])]
    shown = table("group", ">layers", ">units", ">prunable", *more, ">parameters", ">MACs", "kind", title="groups")
    for group in groups if verbose else groups[:ROWS]:
        own = [f"{group.kept:,}"] if kept else []
        own += [", ".join(f"{share:g}" for share in group.asked)] if asked else []
        counts = (f"{n:,}" for n in (len(group.layers), group.units, group.prunable))
        shown.add_row(group.name, *counts, *own, f"{group.parameters:,}", f"{group.macs:,}", _kind(group))
    console.print(shown)
    _print_rest(len(groups), console, verbose)


def print_branches(branches: Sequence[BranchInfo], console: Console, verbose: bool) -> None:
    """Residual branches by the sums that they end at; after a run those that went, with what the outputs lost without
    each alone."""
    if not branches:
        return
    measured = any(branch.loss is not None for branch in branches)
    went = any(branch.gone for branch in branches)
    columns = [*(["went"] if went else []), *([">output error"] if measured else [])]
    shown = table("branch that ends at", ">nodes", ">parameters", ">MACs", *columns, title="residual branches")
    for branch in branches if verbose else branches[:ROWS]:
        own = ["whole" if branch.gone else "no"] if went else []
        own += ["" if branch.loss is None else f"{branch.loss:.3f}"] if measured else []
        shown.add_row(branch.name, str(branch.nodes), f"{branch.parameters:,}", f"{branch.macs:,}", *own)
    console.print(shown)
    _print_rest(len(branches), console, verbose)


def print_layers(layers: Sequence[LayerInfo], console: Console, verbose: bool) -> None:
    """Every name that may be typed: of nodes, parameters and groups."""
    if not layers:
        return
    shown = table("node", "operator", "parameter", ">shape", "group that it makes", title="layers")
    for layer in layers if verbose else layers[:ROWS]:
        makes = ", ".join(layer.makes) or "none that may go"
        first = (layer.node, layer.op_type, makes)
        for name, shape in layer.parameters:
            node, operator, group = first
            shown.add_row(node, operator, name, "x".join(map(str, shape)) or "1", group)
            first = ("", "", "")
    console.print(shown)
    _print_rest(len(layers), console, verbose)


def _kind(group: GroupInfo) -> str:
    """What the units are: channels, or so many heads or groups of a convolution of so many channels each."""
    word = "heads" if group.kind == "head" else "groups"
    kind = f"{group.rows} {word} x {group.prunable // group.rows}" if group.rows else group.kind
    return f"{kind}, crosses a norm" if group.crosses_norm else kind


def some(names: Sequence[str], verbose: bool) -> str:
    """The first names, and how many more there are."""
    shown = names if verbose else names[:2]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def print_frozen(frozen: Sequence[FrozenInfo], console: Console, verbose: bool) -> None:
    """What stays and why, the reasons that hold most units first."""
    if not frozen:
        return
    units: Counter[tuple[str, str, str]] = Counter()
    names: dict[tuple[str, str, str], list[str]] = {}
    for info in frozen:
        key = (info.reason, info.op_type, info.node)
        units[key] += info.units
        names.setdefault(key, []).append(f"{info.parameter}[{info.axis}]")
    shown = table("reason", "operator", "node", ">units", "parameters", title="frozen")
    for key, count in units.most_common(None if verbose else ROWS):
        shown.add_row(*key, f"{count:,}", some(names[key], verbose))
    console.print(shown)
    _print_rest(len(units), console, verbose)


def _print_rest(count: int, console: Console, verbose: bool) -> None:
    if not verbose and count > ROWS:
        console.print(f"  and {count - ROWS} more (--verbose shows all)")
