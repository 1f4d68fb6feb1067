"""Several models of one network, pruned so that what they share stays one. Knows the API and groups, no scores.

The model with the most weights in its main graph decides first, as layers in the bodies of an If are not refitted; the
others lose what it lost of the weights they share, get the values that refitting gave to these, and decide about the
rest themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from onnxprune import api
from onnxprune.errors import CheckFailed, NothingToPrune, OnnxPruneError, UsageError
from onnxprune.integrations.decoders import Pruner
from onnxprune.integrations.sharing import Member, Sharing
from onnxprune.integrations.values import carried, differing
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed, checked
from onnxprune.planning import Plan, asked, excluded, plan_of, removed_by
from onnxprune.rewrite import rewrite

T = TypeVar("T")


def pruned_together(
    root: Path, names: Sequence[str], options: Options, prune: Pruner
) -> tuple[dict[str, api.Result], dict[str, str]]:
    """By path, the results, and why the other models stay as they are. Errors name the model."""
    family = _Family(root, checked(options), prune)
    family.read(names)
    for k in range(len(family.members)):
        family.decide(k)
    family.check()
    results = {str(m.path): r for m, r in zip(family.members, family.results, strict=True) if r is not None}
    unpruned = family.unpruned
    return {n: results[n] for n in names if n in results}, {n: unpruned[n] for n in names if n in unpruned}


class _Family:
    """members: in the order in which they decide. results: of each, None where nothing goes. unpruned: why not."""

    def __init__(self, root: Path, options: Options, prune: Pruner) -> None:
        self.root, self.options, self.prune = root, options, prune
        self.members: list[Member] = []
        self.results: list[api.Result | None] = []
        self.unpruned: dict[str, str] = {}
        self.sharings: dict[tuple[int, int], Sharing] = {}

    def read(self, names: Sequence[str]) -> None:
        """Analyse every model under what the options say of it."""
        models = [Model.load(self.root / name) for name in names]
        for name, model, options in zip(names, models, _for_each(self.options, models), strict=True):
            groups = self._named(name, partial(analysed, model, options, Clock()))
            if groups is not None:
                self.members.append(Member(Path(name), groups, options))
        self._share_out()
        self.members.sort(key=lambda m: (-_read_outside(m.model), str(m.path)))
        pairs = [(k, n) for n in range(len(self.members)) for k in range(n)]
        self.sharings = {(k, n): Sharing.of(self.members[k], self.members[n]) for k, n in pairs}

    def _share_out(self) -> None:
        """Give each member those of the user's ratios by name that it has such names for. UsageError for a name that
        no member has."""
        for name, share in self.options.ratio_of.items():
            refusals = [
                _refusal(partial(asked, m.groups, replace(m.options, ratio_of={name: share}))) for m in self.members
            ]
            if refusals and None not in refusals:
                raise next(filter(None, refusals))
            for member, refusal in zip(self.members, refusals, strict=True):
                if refusal is None:
                    member.options = _with_shares(member.options, {name: share})

    def decide(self, k: int) -> None:
        """Prune the k-th model."""
        member = self.members[k]
        before = {e: s for (e, n), s in self.sharings.items() if n == k and self.results[e] is not None}
        settled = [name for (_, n), s in self.sharings.items() if n == k for name in s.linked()]
        held = [name for (e, _), s in self.sharings.items() if e == k for name in s.held()]
        options = _with_shares(member.options, dict.fromkeys([*settled, *held], 0.0))
        imposed = {e: plan for e, s in before.items() if (plan := s.imposed(self._plan(e))).groups}
        if imposed:
            job = partial(self._followed, member, {e: before[e] for e in imposed}, [*imposed.values()], options)
        else:
            job = partial(self.prune, self.root / member.path, options)
        self.results.append(self._named(str(member.path), job))

    def _followed(
        self, member: Member, before: Mapping[int, Sharing], imposed: Sequence[Plan], options: Options
    ) -> api.Result:
        """A model that loses what those `before` it lost of what they share, and its own share of the rest."""
        path, groups = self.root / member.path, member.groups
        rest = api.plan(path, replace(options, of="units"))
        try:
            removed = removed_by(groups, _joined([*imposed, replace(rest, fingerprint="")]))
        except UsageError as error:
            names = ", ".join(str(s.first.path) for s in before.values())
            raise CheckFailed(f"it cannot lose what {names} lost of what they share: {error.message}") from None
        plan = plan_of(groups, groups.kept_ids(removed), options)
        bare = Options(fast=True)
        own = {name: getattr(bare, name) for name in ("fast", "criterion", "scope", "reconstruct", "calib", "finetune")}
        fast = replace(member.options, **own)
        result = api.prune(path, fast, plan=plan)
        model, notes = result.model, list(result.report.notes)
        for e, sharing in before.items():
            first = self._result(e)
            kept = sharing.first.groups.kept_ids(removed_by(sharing.first.groups, first.plan))
            model = carried(sharing, rewrite(sharing.first.groups.trace, kept).model, first.model, model)
            notes.append(f"weights that it shares with {sharing.first.path} have the units and values chosen there")
        if any(self._result(e).plan.refits for e in before):
            api.verify(path, model, plan, member.options, refitted=True)
            plan = replace(plan, reconstruct=self.options.resolved().reconstruct)
        return replace(result, model=model, plan=plan, report=replace(result.report, notes=tuple(notes)))

    def check(self) -> None:
        """CheckFailed where two models do not lose the same of a weight that they share, or where one that followed
        the other has other values."""
        for (k, n), sharing in self.sharings.items():
            wrong = sharing.disagreement(self._plan(k), self._plan(n))
            first, other = self.results[k], self.results[n]
            if not wrong and first and other and sharing.imposed(first.plan).groups:
                wrong = differing(sharing, first.model, other.model)
            if wrong:
                raise CheckFailed(
                    f"{sharing.first.path} and {sharing.other.path} share '{wrong}' and cannot be shown to lose the "
                    f"same of it; keep it with --nodes-to-exclude {wrong}, or prune these files one by one"
                )

    def _plan(self, k: int) -> Plan:
        result = self.results[k]
        return Plan() if result is None else result.plan

    def _result(self, k: int) -> api.Result:
        result = self.results[k]
        assert result is not None
        return result

    def _named(self, name: str, job: Callable[[], T]) -> T | None:
        """What the job gives; its errors bear the name of the model, and where nothing can go that is noted."""
        try:
            return job()
        except NothingToPrune as why:
            self.unpruned[name] = why.message
            return None
        except OnnxPruneError as error:
            raise type(error)(f"{name}: {error.message}") from error


def _read_outside(model: Model) -> int:
    """How many values of weights the nodes of the main graph read, the bodies of If and Loop left out."""
    names = {name for node in model.graph.node for name in node.input}
    return sum(weight.size for name, weight in model.weights.items() if name in names)


def _with_shares(options: Options, shares: Mapping[str, float]) -> Options:
    """The same, with these shares of what bears these names; 0 keeps it."""
    return replace(options, ratio_of={**options.ratio_of, **shares})


def _joined(plans: Sequence[Plan]) -> Plan:
    """What any of these plans removes."""
    groups: dict[str, tuple[Any, ...]] = {}
    for plan in plans:
        for name, removals in plan.groups.items():
            groups[name] = (*groups.get(name, ()), *removals)
    return Plan(groups)


def _for_each(options: Options, models: Sequence[Model]) -> list[Options]:
    """The options for every model: of the names and inputs those that it has. UsageError for what no model has."""
    inputs = [{i.name for i in model.graph.input} for model in models]
    if unknown := options.input_shapes.keys() - set[str]().union(*inputs):
        raise UsageError(f"--overwrite-input-shape {min(unknown)}: no model has such an input")
    nodes = _owners(models, [Options(nodes_to_exclude=(name,)) for name in options.nodes_to_exclude])
    types = _owners(models, [Options(op_types_to_exclude=(kind,)) for kind in options.op_types_to_exclude])
    return [
        replace(
            options,
            nodes_to_exclude=tuple(name for one in nodes[k] for name in one.nodes_to_exclude),
            op_types_to_exclude=tuple(kind for one in types[k] for kind in one.op_types_to_exclude),
            ratio_of={},
            input_shapes={name: shape for name, shape in options.input_shapes.items() if name in inputs[k]},
        )
        for k in range(len(models))
    ]


def _owners(models: Sequence[Model], wanted: Sequence[Options]) -> list[list[Options]]:
    """Of every model those that exclude something of it. UsageError for one that excludes nothing of any."""
    found: list[list[Options]] = [[] for _ in models]
    workings = [model.normalised() for model in models if wanted]
    for one in wanted:
        refusals = [
            _refusal(partial(excluded, model, working, one)) for model, working in zip(models, workings, strict=True)
        ]
        if None not in refusals:
            raise next(filter(None, refusals))
        for own, refusal in zip(found, refusals, strict=True):
            own += [one] if refusal is None else []
    return found


def _refusal(job: Callable[[], object]) -> UsageError | None:
    """Why a model has not what is named."""
    try:
        job()
    except UsageError as error:
        return error
    return None
