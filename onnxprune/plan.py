"""The plan: which slices of which parameters go. JSON that a person can read, edit and replay, here or elsewhere.

Knows names and positions, no graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import UsageError

VERSION = 1


@dataclass(frozen=True)
class Removal:
    """Of `parameter`, along `axes` (outermost first, sizes `shape`), the positions `remove` go.

    Positions are flat indices into `shape`; for one axis these are the channel numbers."""

    parameter: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    remove: tuple[int, ...]
    use: str = ""


@dataclass(frozen=True)
class Plan:
    """groups: name -> removals of coupled parameters. structures: how nested axes were read (see `trace`)."""

    groups: Mapping[str, tuple[Removal, ...]] = field(default_factory=dict)
    scope: str = "local"
    ratio: float = 0.0
    criterion: str = ""

    def to_json(self) -> dict[str, Any]:
        groups = {
            name: [
                {"parameter": r.parameter, "axes": list(r.axes), "shape": list(r.shape), "remove": list(r.remove)}
                | ({"use": r.use} if r.use else {})
                for r in removals
            ]
            for name, removals in self.groups.items()
        }
        return {
            "version": VERSION,
            "scope": self.scope,
            "ratio": self.ratio,
            "criterion": self.criterion,
            "groups": groups,
        }

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Raises UsageError where `data` is not a plan."""
        try:
            if data["version"] != VERSION:
                raise UsageError(f"the plan has version {data['version']}; this program reads version {VERSION}")
            groups = {
                str(name): tuple(
                    Removal(
                        str(r["parameter"]), tuple(map(int, r["axes"])), tuple(map(int, r["shape"])),
                        tuple(map(int, r["remove"])), str(r.get("use", "")),
                    )
                    for r in removals
                )
                for name, removals in data["groups"].items()
            }  # fmt: skip
            return Plan(groups, str(data["scope"]), float(data["ratio"]), str(data["criterion"]))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UsageError(f"not a plan: {e!r}; write one with --save-plan") from None
