"""The dimensions that a model declares for its inputs: numbers, symbols and expressions, and sizes that are asked for.

Knows the names of dimensions, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnx import TensorProto, TensorShapeProto, TypeProto, ValueInfoProto

from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.shapes.quotients import parsed
from onnxprune.shapes.size_choices import Assignment, Role, SizePlan
from onnxprune.shapes.symbols import Dim, Size, symbol

Axis = int | str
"""As declared: a number, or a symbol, or an expression over symbols."""
Declared = dict[str, list[Axis]]
"""By input."""
NOTHING: Mapping[str, int] = {}
Tensors = Mapping[str, TypeProto.Tensor]
_NAME = re.compile(r"[^\W\d][\w.]*")
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def symbol_name(dim: TensorShapeProto.Dimension) -> str:
    """The name of an open dimension; a "?" stands for any size and ties nothing."""
    return str(dim.dim_param) if re.search(r"\w", dim.dim_param) else ""


def plan_sizes(
    inputs: Sequence[ValueInfoProto], fixed: Mapping[str, Sequence[int]], known: Mapping[str, int] = NOTHING
) -> SizePlan:
    """Read the inputs' declared dimensions; `fixed` gives sizes for some inputs (0 or less: as declared). UsageError
    where such an input is not there, or its sizes contradict what is declared. known: symbols that can be one number
    only."""
    tensors = {i.name: i.type.tensor_type for i in inputs if i.type.WhichOneof("value") == "tensor_type"}
    for name in fixed:
        if name not in tensors:
            raise UsageError(f"the model has no input {name!r}; its inputs are {', '.join(tensors)}")
    declared = _declared(tensors, fixed)
    bound = _bound(declared, fixed)
    settled = {**known, **bound}
    roles = _roles(declared, settled, tensors)
    axes = {name: tuple(_dim(d, settled, roles) for d in dims) for name, dims in declared.items()}
    seconds = (d for n, dims in axes.items() if tensors[n].elem_type in _INTEGERS for d in dims[1:2])
    queries = {1, *(d for d in seconds if isinstance(d, int))}
    return SizePlan(axes, roles, tuple(sorted(queries)), bound)


def _declared(tensors: Tensors, fixed: Mapping[str, Sequence[int]]) -> Declared:
    """Every axis by a number or a name; one without either is named after its place."""
    out: Declared = {}
    for name, tensor in tensors.items():
        if tensor.HasField("shape"):
            dims = [(d.dim_value if d.dim_value > 0 else symbol_name(d)) for d in tensor.shape.dim]
            out[name] = [d or ("axis 0" if i == 0 else f"{name} axis {i}") for i, d in enumerate(dims)]
        elif name in fixed:
            out[name] = [d if d > 0 else f"{name} axis {i}" for i, d in enumerate(fixed[name])]
    return out


def _bound(declared: Declared, fixed: Mapping[str, Sequence[int]]) -> Assignment:
    """The sizes that symbols get where some are asked for; UsageError where they contradict what is declared."""
    bound: Assignment = {}
    for name, wanted in fixed.items():
        accepts = f"input {name!r} is [{', '.join(map(str, declared[name]))}]"
        if len(wanted) != len(declared[name]):
            raise UsageError(f"{accepts}: give {len(declared[name])} sizes, not {len(wanted)}, 0 for one to leave open")
        for i, (have, want) in enumerate(zip(declared[name], wanted, strict=True)):
            clash = have if isinstance(have, int) else bound.get(have, want)
            if want > 0 and clash != want:
                raise UsageError(f"{accepts}: its dimension {i} is {clash}, not {want}")
            if want > 0 and isinstance(have, str):
                bound[have] = want
    return bound


def _roles(declared: Declared, bound: Assignment, tensors: Tensors) -> dict[str, Role]:
    """The role of every symbol: that of the first axis that it names, but a batch wherever it is one."""
    plain = {d for dims in declared.values() for d in dims if isinstance(d, str) and _NAME.fullmatch(d)}
    roles: dict[str, Role] = {}
    for name, dims in declared.items():
        sides = sum(isinstance(d, str) for d in dims[1:])
        for i, d in enumerate(dims):
            if isinstance(d, str) and d not in bound and not _is_expression(d, plain):
                role = _role(i, len(dims), sides, tensors[name].elem_type)
                roles[d] = "batch" if role == "batch" else roles.get(d, role)
    return roles


def _dim(declared: Axis, bound: Assignment, roles: Mapping[str, Role]) -> Dim:
    """A declared dimension as a number or an expression."""
    if isinstance(declared, int):
        return declared
    if declared in bound:
        return bound[declared]
    return symbol(declared) if declared in roles else evaluate(declared, bound)


def declare(model: Model, plan: SizePlan) -> None:
    """Write the sizes that were given into the declared inputs, and into whatever else bears the same symbol."""
    graph = model.skeleton.graph
    for info in graph.input:
        tensor = info.type.tensor_type
        for k, size in enumerate(plan.axes.get(info.name, ()) if plan.bound else ()):
            if k == len(tensor.shape.dim):
                tensor.shape.dim.add()
            if isinstance(size, int):
                tensor.shape.dim[k].dim_value = size
    for info in (*graph.output, *graph.value_info) if plan.bound else ():
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in plan.bound:
                dim.dim_value = plan.bound[dim.dim_param]


def _role(axis: int, rank: int, sides: int, element: int) -> Role:
    """sides: how many axes are open behind the first."""
    if axis == 0:
        return "batch"
    if element in _INTEGERS:
        return "token"
    if rank < 4:
        return "length"
    return "volume" if sides > 2 else "space"


def _is_expression(dim: str, symbols: set[str]) -> bool:
    """Exporters also name a dimension "past + present"; it is one only if its parts are dimensions themselves."""
    names = _NAME.findall(dim)
    if dim in symbols or not names or not symbols.issuperset(names):
        return False
    try:
        found = evaluate(dim, dict.fromkeys(names, 2))
    except ValueError:
        return False
    return isinstance(found, Size) or found > 0


def evaluate(dim: str, sizes: Mapping[str, int]) -> Dim:
    """A sum, difference, product or quotient of symbols and integers, with the sizes that are known put in."""
    names = list(dict.fromkeys(_NAME.findall(dim)))
    plain = {name: f"s{k}" for k, name in enumerate(names)}
    back = {new: name for name, new in plain.items()}
    text = _NAME.sub(lambda m: plain[m[0]], dim)
    return parsed(text, lambda s: sizes[back[s]] if back[s] in sizes else symbol(back[s]))
