"""The plan: which slices of which parameters go. JSON that a person can read, edit and replay, here or elsewhere.

Knows names and positions, no graph.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.files import check_finite, write_json
from onnxprune.options import near

VERSION = 2


@dataclass(frozen=True)
class Removal:
    """Of `parameter`, along `axes` (outermost first, sizes `shape`), the positions `remove` go.

    Positions are flat indices into `shape`; for one axis these are the channel numbers. `use` (NODE:INPUT): for this
    use of the parameter only, which has others besides. rows: into how many heads or groups of equal size all positions
    fall, and how many of these are left; () where into none, or nobody asked."""

    parameter: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    remove: tuple[int, ...]
    use: str = ""
    rows: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Plan:
    """groups: name (see `Groups.name`) -> removals of coupled parameters. branches: residual branches that go whole, by
    the tensor that the sum at the end of each makes.

    scope, ratio, criterion, ratio_of: what it was made with. fingerprint: of the graph that it was made of (see
    `fingerprint`); "" where that is none, so that only names and sizes tell whether it fits. reconstruct: what its run
    did to the weights that stay (see `Options`), "" where there was no run: nothing, as "none". kv_heads: whether
    heads of a cache go, so that inputs and outputs change their shapes. whole_blocks: whether what shares a scale of
    4-bit weights goes together, as where no weights are solved for: groups are others then."""

    groups: Mapping[str, tuple[Removal, ...]] = field(default_factory=dict)
    scope: str = "local"
    ratio: float = 0.0
    criterion: str = ""
    fingerprint: str = ""
    reconstruct: str = ""
    ratio_of: Mapping[str, float] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    kv_heads: bool = False
    whole_blocks: bool = False

    @property
    def refits(self) -> bool:
        """Whether its run gave the weights that stay other values."""
        return self.reconstruct not in ("", "none")

    def refitted(self, story: Mapping[str, Any] | None, tuned: Mapping[str, Any] | None) -> Plan:
        """With what was done to the weights that stay, as the report tells it: the refit, or the training alone."""
        way = "finetune" if tuned is not None and tuned.get("accepted") else "none"
        if story is not None and "failed" not in story and not story.get("fell_back"):
            way = str(story.get("method", "ls"))
        return replace(self, reconstruct=way)

    def to_json(self) -> dict[str, Any]:
        """What a plan's file holds: plain dicts, lists, strings and numbers."""
        groups = {
            name: [
                {"parameter": r.parameter, "axes": list(r.axes), "shape": list(r.shape), "remove": list(r.remove)}
                | ({"use": r.use} if r.use else {})
                | ({"rows": list(r.rows)} if r.rows else {})
                for r in removals
            ]
            for name, removals in self.groups.items()
        }
        return {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "scope": self.scope,
            "ratio": self.ratio,
            **({"ratio_of": dict(self.ratio_of)} if self.ratio_of else {}),
            "criterion": self.criterion,
            "reconstruct": self.reconstruct,
            **({"branches": list(self.branches)} if self.branches else {}),
            **({"kv_heads": True} if self.kv_heads else {}),
            **({"whole_blocks": True} if self.whole_blocks else {}),
            "groups": groups,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The plan as a JSON file, whole or not at all."""
        write_json(Path(path), self.to_json())
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """A plan from a file; UsageError, in one line, where it is none."""
        return read_plan(Path(path))

    @staticmethod
    def of(given: Plan | str | os.PathLike[str]) -> Plan:
        """A plan as it is, or that in the file at a path; UsageError where it is none."""
        if isinstance(given, str | os.PathLike):
            return Plan.load(given)
        if not isinstance(given, Plan):
            raise UsageError(
                f"a plan is a Plan or the path of a file made by --save-plan, not a {type(given).__name__}"
            )
        return given

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Raises UsageError where `data` is not a plan."""
        version = _entry(data, "version", int)
        if version != VERSION:
            raise UsageError(
                f"the plan has version {version}, this program reads version {VERSION}; make it anew (plans of version "
                "1 did not say of which graph they were, and could lack groups)"
            )
        _check_read(data, {"version", *(f.name for f in fields(Plan))})
        groups = _entry(data, "groups", dict)
        for name in groups:
            _entry(groups, name, list)
        return Plan(
            {name: tuple(map(_removal, removals)) for name, removals in groups.items()},
            _entry(data, "scope", str), _entry(data, "ratio", float), _entry(data, "criterion", str),
            _entry(data, "fingerprint", str), _entry(data, "reconstruct", str),
            _entry(data, "ratio_of", dict) if "ratio_of" in data else {},
            _names(data, "branches") if "branches" in data else (),
            "kv_heads" in data and _entry(data, "kv_heads", bool),
            "whole_blocks" in data and _entry(data, "whole_blocks", bool),
        )  # fmt: skip


def _removal(data: Any) -> Removal:
    axes, shape, remove = (_whole_numbers(data, key) for key in ("axes", "shape", "remove"))
    _check_read(data, {f.name for f in fields(Removal)})
    name = _entry(data, "parameter", str)
    if not axes or len(axes) != len(shape) or max(remove, default=0) >= math.prod(shape):
        raise UsageError(f"not a plan: of '{name}', axes, shape and positions do not fit each other")
    rows = _whole_numbers(data, "rows") if "rows" in data else ()
    if rows and (len(rows) != 2 or not 0 < rows[1] <= rows[0] or math.prod(shape) % rows[0]):
        raise UsageError(f"not a plan: 'rows' of '{name}' are heads before and after, not {list(rows)!r:.40}")
    return Removal(name, axes, shape, remove, _entry(data, "use", str) if "use" in data else "", rows)


def _check_read(data: Mapping[str, Any], known: Collection[str]) -> None:
    """UsageError for an entry that nobody reads: 'branch' for 'branches', and it would stay."""
    for key in data:
        if key not in known:
            raise UsageError(f"not a plan: nobody reads its '{key}'{near(key, known)}")


def _whole_numbers(data: Any, key: str) -> tuple[int, ...]:
    found = _entry(data, key, list)
    if not all(type(n) is int and n >= 0 for n in found):
        raise UsageError(f"not a plan: '{key}' holds something else than numbers from 0 on")
    return tuple(found)


def _names(data: Any, key: str) -> tuple[str, ...]:
    found = _entry(data, key, list)
    if not all(isinstance(name, str) for name in found):
        raise UsageError(f"not a plan: '{key}' holds something else than names")
    return tuple(found)


def _entry(data: Any, key: str, kind: type) -> Any:
    """An entry of an object; a whole number may stand for a float."""
    if not isinstance(data, dict):
        raise UsageError(f"not a plan: an object with '{key}' is wanted, not {data!r:.40}; write one with --save-plan")
    if key not in data:
        raise UsageError(f"not a plan: it has no '{key}'; write one with --save-plan")
    value = data[key]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"not a plan: its '{key}' is {value!r:.40}; write one with --save-plan")
    return value


def read_plan(path: Path) -> Plan:
    """A plan from its file; UsageError, in one line, where it is none."""
    check_finite(path)
    try:
        return Plan.from_json(json.loads(path.read_text("utf-8"), object_pairs_hook=_once_each))
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}") from None
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; a plan is a file made by --save-plan") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; a plan is a file made by --save-plan") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: not a plan, it is no JSON; a plan is a file made by --save-plan") from None


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; where a name stands in it twice a reader would silently drop one of the two."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise UsageError(f"not a plan: '{twice[0]}' stands twice in one object; give every group its own name")
    return dict(pairs)
