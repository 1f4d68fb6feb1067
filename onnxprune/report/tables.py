"""What a run did, as tables in a terminal. Knows results as data and computes none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console

from onnxprune.report.cached import print_caches
from onnxprune.report.layout import percent, table
from onnxprune.report.parts import print_branches, print_frozen, print_groups, print_layers, some
from onnxprune.report.quality import add_quality, print_gates, print_warnings
from onnxprune.report.run import Report
from onnxprune.report.weights import print_finetuning, print_reconstruction
from onnxprune.results import (
    Compared,
    Cost,
    Inspection,
    Proof,
    Sweep,
    SweepPoint,
    Verified,
)
from onnxprune.units import changed, duration, written


def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """Before and after, the groups pruned, what stayed and why, and the proof."""
    shown = table("", ">before", ">after", ">kept")
    for label, before, after, show in _rows(report.before, report.after):
        shown.add_row(label, show(before), show(after), percent(after, before))
    for row in _latency_rows(report.latency or {}):
        shown.add_row(*row)
    groups = sum(group.kept < group.units for group in report.groups)
    shown.add_row("groups", str(len(report.groups)), f"{groups} pruned", "")
    if report.validation:
        add_quality(shown, report.validation)
    console.print(shown)
    print_warnings((*report.warnings, *(report.validation or {}).get("warnings", ())), console)
    print_gates(report.validation or {}, console)
    print_groups(report.groups, console, verbose, kept=True)
    print_branches([branch for branch in report.branches if branch.gone or verbose], console, verbose)
    print_frozen(report.frozen, console, verbose)
    print_caches(report.caches, console, verbose)
    _print_notes(report.notes, console)
    print_reconstruction(report.reconstruction, console, verbose)
    print_finetuning(report.finetune, console)
    _print_latency(report, console)
    print_proof(report.proof, console)
    _print_search(report.search, report.options.of == "latency", console)
    if verbose and report.seconds:
        console.print("seconds: " + ", ".join(f"{stage} {value:.2f}" for stage, value in report.seconds.items()))


def _print_search(search: Mapping[str, Any] | None, by_time: bool, console: Console) -> None:
    """Which ratio was found, and the command that makes the same without a search; where the budget is in seconds
    (`by_time`) only about the same."""
    if not search:
        return
    failed, tried = [one["ratio"] for one in search["tried"] if not one["holds"]], len(search["tried"])
    if "max_latency" in search:
        bound = duration(search["max_latency"])
        smaller = f" ({max(failed):g} is not)" if failed else ""
        console.print(
            f"search: --ratio {search['ratio']:g} is the smallest of {tried} tried that is within --max-latency "
            f"{bound}{smaller}"
        )
    else:
        larger = f" ({min(failed):g} does not)" if failed else ""
        console.print(
            f"search: --ratio {search['ratio']:g} is the largest of {tried} tried that holds the gates{larger}"
        )
    if "command" in search:
        about = " (other times may give other widths; --save-plan keeps these)" if by_time else ""
        console.print(f"again, without the search{about}: {search['command']}", soft_wrap=True)


def print_proof(proof: Proof, console: Console) -> None:
    """What was shown, at which sizes, and what was not."""
    for line in _proof(proof):
        console.print(line)


def print_verified(found: Verified, console: Console, verbose: bool = False) -> None:
    """The proof, and what can be said of parameters that are no slices."""
    print_proof(found, console)
    if not found.refitted:
        return
    console.print(f"refitted, so that only their shapes and places are proven: {some(found.refitted, verbose)}")
    errors = found.output_error
    told = f"{errors['written']:.3f} (as sliced {errors['sliced']:.3f}) on {found.inputs}" if errors else found.inputs
    console.print(f"output error beside the original: {told}")
    if errors and errors["written"] > errors["sliced"]:
        console.print("note: slices would be nearer to the original; was it refitted on other inputs, or changed?")


def _proof(proof: Proof) -> Iterator[str]:
    """What was shown, at which sizes, and what was not."""
    at = "; ".join(proof.sizes) or f"batch {', '.join(map(str, proof.batches))}"
    pieces = f", in {proof.blocks} pieces" if proof.blocks > 1 else ""
    yield (
        f"proof: {proof.couplings:,} couplings agree; outputs {_equal(proof.error)} (allowed {proof.tolerance:.0e}) at "
        f"{at} on {', '.join(proof.providers)}{pieces}"
    )
    drawn = "" if proof.redrawn is None else f"; {_equal(proof.redrawn)} with weights drawn anew"
    if proof.slices:
        yield (
            f"       {proof.slices:,} parameters are slices of the original's; {proof.tensors:,} tensors inside agree"
            f"{drawn}"
        )
    for text in (*(f"not compared: {output}" for output in proof.uncompared), *proof.notes):
        yield f"       {text}"


def _equal(error: float) -> str:
    return f"equal within {error:.1e}" if error else "exactly equal"


def print_comparison(found: Compared, console: Console) -> None:
    """Costs and quality of two models."""
    shown = table("", ">A", ">B", ">B of A")
    for label, before, after, show in _rows(found.before, found.after):
        shown.add_row(label, show(before), show(after), percent(after, before))
    for row in _latency_rows(found.latency or {}):
        shown.add_row(*row)
    add_quality(shown, found.quality)
    console.print(shown)
    print_warnings(found.quality["warnings"], console)
    print_gates(found.quality, console)
    _print_latency(found, console)
    console.print(f"data: {found.quality['data']}; on {', '.join(found.quality['providers'])}")


def print_inspection(inspection: Inspection, console: Console, verbose: bool = True) -> None:
    """The groups of coupled channels, and what is frozen with the reason."""
    cost = inspection.cost
    console.print(f"{cost.parameters:,} parameters, {cost.macs:,} MACs, {size(cost.bytes)}")
    print_groups(inspection.groups, console, verbose)
    print_branches(inspection.branches, console, verbose)
    print_layers(inspection.layers, console, verbose)
    print_frozen(inspection.frozen, console, verbose)
    _print_notes(inspection.notes, console)


def print_sweep(sweep: Sweep, console: Console) -> None:
    """Every point with what it keeps and costs, and the fronts that it is on."""
    timed = "latency" in sweep.fronts
    less = "" if sweep.higher_is_better else " (less is better)"
    console.print(f"{sweep.metric}{less} {written(sweep.dense.metric or 0.0, sweep.unit)} as it is, on {sweep.data}")
    print_warnings(sweep.warnings, console)
    columns = ["criterion", ">ratio", ">parameters", ">MACs", *([">latency"] if timed else []), f">{sweep.metric}"]
    shown = table(*columns, ">change", "best by")
    for point in sweep.points:
        shown.add_row(point.criterion, f"{point.ratio:g}", *_point(point, sweep, timed))
    console.print(shown)


def sweep_line(about: Any, dense: SweepPoint, point: SweepPoint) -> str:
    """One point of a sweep in a line: what it keeps of the original, and what it is worth. about: has the `metric`, its
    name, and its `unit`."""
    metric, unit = about.metric, about.unit
    if point is dense:
        worth = "" if dense.metric is None else f", {metric} {written(dense.metric, unit)}"
        return f"{dense.macs:,} MACs, {dense.parameters:,} parameters{worth}"
    name = f"{point.criterion} at {point.ratio:g}"
    if point.error is not None or point.metric is None or dense.metric is None:
        return f"{name}: failed: {point.error}"
    macs, parameters = percent(point.macs or 0, dense.macs or 0), percent(point.parameters or 0, dense.parameters or 0)
    good = f"{metric} {written(point.metric, unit)} ({changed(point.metric - dense.metric, unit)})"
    return f"{name}: {macs} of the MACs, {parameters} of the parameters, {good}, {point.seconds:.1f} s"


def _point(point: SweepPoint, sweep: Sweep, timed: bool) -> Iterator[str]:
    """What a point keeps of the original, its latency where that is measured, the metric, and where it is best."""
    dense = sweep.dense
    if point.error is not None or point.metric is None or dense.metric is None:
        yield from [""] * (4 + timed)
        yield f"failed: {point.error}"
        return
    yield percent(point.parameters or 0, dense.parameters or 0)
    yield percent(point.macs or 0, dense.macs or 0)
    if timed:
        yield f"{1000 * (point.latency or 0):.2f} ms"
    yield written(point.metric, sweep.unit)
    yield changed(point.metric - dense.metric, sweep.unit)
    yield ", ".join(cost for cost, names in sweep.fronts.items() if point.name in names)


def size(count: int) -> str:
    """Bytes as people write them."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _rows(before: Cost, after: Cost) -> Iterable[tuple[str, int, int, Any]]:
    yield "parameters", before.parameters, after.parameters, "{:,}".format
    yield "MACs", before.macs, after.macs, "{:,}".format
    yield "file size", before.bytes, after.bytes, size


def _latency_rows(latency: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    """Predicted and measured times, as rows of the table of before and after."""
    if predicted := latency.get("predicted"):
        yield "latency, predicted", *_times(predicted["before"], predicted["after"])
    if measured := latency.get("measured"):
        yield "latency", *_times(measured["before"]["median"], measured["after"]["median"])


def _times(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.3g} ms", f"{after:.3g} ms", f"{after / before:.1%}"


def _faster(speedup: float) -> str:
    return f"{speedup:.2f} times faster" if speedup >= 1 else f"{1 / speedup:.2f} times slower"


def _print_latency(report: Report | Compared, console: Console) -> None:
    measured = (report.latency or {}).get("measured")
    if not measured:
        return
    before, after = measured["before"], measured["after"]
    macs = f" (MACs {report.before.macs / report.after.macs:.2f} times fewer)" if report.after.macs else ""
    threads = measured["threads"] or f"default, {measured['cores']} cores"
    console.print(
        f"latency: {_faster(measured['speedup'])}{macs}; median {before['median']:.3g} -> "
        f"{after['median']:.3g} ms (quartiles {before['low']:.3g}-{before['high']:.3g}, {after['low']:.3g}-"
        f"{after['high']:.3g}), {min(measured['runs']):,} runs each in turns, batch {measured['batch']}, threads "
        f"{threads}, {', '.join(measured['providers'])}"
    )


def _print_notes(notes: Iterable[str], console: Console) -> None:
    for note in notes:
        console.print(f"note: {note}")
