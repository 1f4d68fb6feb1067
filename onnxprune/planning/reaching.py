"""Whether a target can be reached beside what is asked of parts by name. Knows costs and shares, no operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.options import Options
from onnxprune.planning.costs import Costs
from onnxprune.planning.named import asked
from onnxprune.planning.selection import select
from onnxprune.trace import Groups

SLACK = 1.03
"""How far a plan may be off its target: of what may be left before heads go, and of what --ratio-of alone takes."""


def check_reachable(groups: Groups, options: Options, costs: Costs) -> None:
    """UsageError where the cost cannot come down to the ratio's share, because of what is asked of some units: with
    every other one at its limit it is still higher, or with these alone it is lower already."""
    given, none = asked(groups, options), np.zeros(len(groups.prunable))
    alone = select(groups, none, options, {}, given)
    scope: Literal["local", "global"] = "local" if options.scope == "local" else "global"
    most = select(groups, none, replace(options, ratio=1.0, of="units", scope=scope), asked=given)
    least, rest = (1 - costs.total(groups.alive(groups.kept_ids(removed))) / costs.whole for removed in (alone, most))
    of = {"macs": "MACs", "params": "parameters", "latency": "time"}[options.of]
    if rest < options.ratio:
        raise UsageError(
            f"--ratio {options.ratio:g} of the {of} cannot be reached with what --ratio-of says: at most {rest:.3f} "
            "can go; raise its shares, or lower --ratio"
        )
    if least > SLACK * options.ratio:
        raise UsageError(
            f"what --ratio-of says takes {least:.3f} of the {of}, more than --ratio {options.ratio:g}; lower its "
            "shares, or raise --ratio"
        )
