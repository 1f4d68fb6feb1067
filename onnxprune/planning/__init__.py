"""Which units go: statistics, criteria, costs, the budget, and the plan by name.

Knows groups and statistics, no rule and no edit.
"""

from __future__ import annotations

from onnxprune.planning.costs import Costs
from onnxprune.planning.decision import (
    Decision,
    Planner,
    by_weights,
    in_spite_of_fast,
    rival,
    settled,
    uses_inputs,
    working,
)
from onnxprune.planning.exclusion import excluded
from onnxprune.planning.limits import movable
from onnxprune.planning.memory import Needs, checked, needs
from onnxprune.planning.named import asked
from onnxprune.planning.names import plan_of, removed_by
from onnxprune.planning.parting import Parts, calibrated, everything, folds, parted, with_mirrors
from onnxprune.planning.plan import Plan, Removal, read_plan
from onnxprune.planning.selection import select
from onnxprune.planning.sensitivity import OutputError

__all__ = [
    "Costs", "Decision", "Needs", "OutputError", "Parts", "Plan", "Planner", "Removal", "asked", "by_weights",
    "calibrated", "checked", "everything", "excluded", "folds", "in_spite_of_fast", "movable", "needs", "parted",
    "plan_of", "read_plan", "removed_by", "rival", "select", "settled", "uses_inputs", "with_mirrors", "working",
]  # fmt: skip
