"""The quality of two models in a terminal: metric, fidelity, gates, warnings. Knows results as data, computes none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from onnxprune.report.layout import table
from onnxprune.units import changed, written


def print_quality(quality: Mapping[str, Any], console: Console) -> None:
    """Quality of two models (see `measure.Quality`), without their costs."""
    shown = table("", ">before", ">after", ">change")
    add_quality(shown, quality)
    console.print(shown)
    print_warnings(quality["warnings"], console)
    print_gates(quality, console)


def add_quality(shown: Table, quality: Mapping[str, Any]) -> None:
    """The metric with its change and the interval of that; fidelity to the dense model by what is not that metric."""
    metric, unit, interval = str(quality["metric"]), quality["unit"], quality["interval"]
    worse = -1 if quality["higher_is_better"] else 1
    ends = None if interval is None else sorted(worse * x for x in interval)
    change = changed(worse * quality["drop"], unit, (ends[0], ends[1]) if ends else None)
    name = f"{metric} of {quality['samples']:,}{'' if quality['higher_is_better'] else ' (less is better)'}"
    shown.add_row(name, written(quality["before"], unit), written(quality["after"], unit), change)
    fidelity = quality["fidelity"]
    likeness = {
        "agreement": f"agreement {fidelity['agreement']:.2%}",
        "cosine": f"cosine {round(fidelity['cosine'], 4) + 0.0:.4f}",
        "snr": f"{round(fidelity['snr'], 1) + 0.0:.1f} dB",
    }  # fmt: skip
    own = metric if quality["after"] == fidelity.get(metric) else ""
    shown.add_row("fidelity", "", ", ".join(text for name, text in likeness.items() if name != own), "")


def print_gates(quality: Mapping[str, Any], console: Console) -> None:
    """What had to hold and does; what does not is an error of its own."""
    gates = quality.get("gates")
    if gates and not quality["failed"]:
        asked = [f"--{n.replace('_', '-')} {x:g}" for n, x in gates.items() if n != "gate" and x is not None]
        sure = " at the worse end of its confidence interval" if gates["gate"] == "interval" else ""
        console.print(f"held: {', '.join(asked)}{sure}")


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    """What makes figures doubtful, each in one line however long it is."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="bold", soft_wrap=True)
