"""What was done to the weights that stay, in lines for a terminal. Knows results as data and computes none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from onnxprune.report.layout import table


def print_reconstruction(refit: Mapping[str, Any] | None, console: Console, verbose: bool) -> None:
    """The inputs, the layers that were refitted, and what that left of the error."""
    if not refit:
        return
    if refit.get("method") == "merge":
        like = f", which are {refit['similarity']:.2f} similar on average" if refit["merged"] else ""
        console.print(f"merged {refit['merged']:,} removed units into kept ones{like}")
        return
    if refit.get("method") == "fold":
        apart = f", {refit['distance']:.2f} of their length away on average" if refit["folded"] else ""
        console.print(f"folded {refit['folded']:,} removed units into kept ones{apart}")
        return
    diverse = "" if refit.get("diversity") is None else f", diversity {refit['diversity']:.2f}"
    console.print(f"calibrated on {refit['inputs']}{diverse}")
    if "failed" in refit:
        console.print(f"not refitted: {refit['failed']}")
        return
    errors, unseen = refit["output_error"], refit["held_out_batches"]
    on = "held-out inputs" if unseen else "what it was fitted to, for nothing could be held out,"
    console.print(
        f"refitted {len(refit['layers'])} layers; output error on {on} {errors['refitted']:.3f} (as sliced "
        f"{errors['sliced']:.3f}, as --fast {errors['fast']:.3f})"
    )
    if refit["fell_back"]:
        console.print("this was worse than --fast, so the plan and weights of --fast were taken")
    if verbose:
        solved = table("layer", ">error before", ">error after", ">ridge", title="refitted")
        for layer in refit["layers"]:
            row = (f"{layer['before']:.4f}", f"{layer['after']:.4f}", f"{layer['ridge']:g}")
            solved.add_row(layer["layer"], *row)
        console.print(solved)
        for name, why in refit["skipped"].items():
            console.print(f"not refitted: {name}: {why}")


def print_finetuning(told: Mapping[str, Any] | None, console: Console) -> None:
    """What the training did, on what, and whether it was taken."""
    if not told:
        return
    for warning in told.get("warnings", ()):
        console.print(f"warning: {warning}", style="bold", soft_wrap=True)
    if "skipped" in told:
        console.print(f"not fine-tuned: {told['skipped']}")
        return
    loss, error = told["loss"], told["output_error"]
    trust = ", which are none of yours: measure on real data (--validate)" if told["made_up"] else ""
    stopped = "interrupted after" if told["interrupted"] else "in"
    console.print(
        f"fine-tuned {stopped} {told['steps']:,} steps and {told['seconds']:.0f} s by torch {told['torch']} on "
        f"{told['device']}; on {told['judged_on']} held-out inputs loss {loss['after']:.3f} (before "
        f"{loss['before']:.3f}), output error {error['after']:.3f} ({error['before']:.3f}); {told['inputs']}{trust}"
    )
    if not told["accepted"]:
        console.print("this was no better, so the weights stay as they were")
    if told["left"]:
        console.print(f"not trained: {len(told['left'])} integer weights such as {told['left'][0]}")
