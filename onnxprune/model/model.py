"""Load, hold, normalise and save an ONNX model: the only file that touches storage.

A ``Model`` is a skeleton proto, whose initializers hold no bytes, and ``weights``, which hold them: copies are cheap,
external data stays memory-mapped, and a tensor nobody slices reaches the disk as it came. Knows files and
protobuf, no stage.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, TensorProto, helper

from onnxprune.errors import UsageError
from onnxprune.files import check_outputs, created, disk_errors, followed, replacing, same_file
from onnxprune.model.aside import Aside
from onnxprune.model.graph import defined, every_node, make_names_distinct, retain, scopes
from onnxprune.model.loading import source_of
from onnxprune.model.normalise import (
    FILLED_LIMIT,
    constant,
    count_axes_from_first,
    dense_of,
    filled,
    inlined,
    inner_tensors,
    name_nodes,
    set_nodes,
    sorted_nodes,
)
from onnxprune.model.storage import ExternalData
from onnxprune.model.taken import Taken
from onnxprune.model.untying import untie
from onnxprune.model.weight import BITS, Array, Weight, described
from onnxprune.model.wire import stream

PROTOBUF_LIMIT = (1 << 31) - (1 << 20)
"""A protobuf file ends at 2 GiB; the margin covers what an estimate misses."""
SESSION_LIMIT = 1_500_000_000
"""Models of more bytes are handed to a runtime as a file."""
INLINE_LIMIT = 1024
"""Tensors smaller than this stay in the model file: runtimes need shape constants before they open external data."""


@dataclass
class Model:
    """`skeleton` is the graph without weight bytes, which no runtime loads (`to_proto` gives one that is whole);
    `weights` by initializer name. Edit either, `sync` brings them together.

    taken: of a rewritten graph whose inputs and outputs became smaller, by name and axis the positions that are left of
    the original's: sessions take feeds of the original, and what comes out is compared with these positions. aside:
    where what `put` is given waits, if not in memory."""

    skeleton: ModelProto
    weights: dict[str, Weight]
    path: Path | None = None
    data_files: tuple[Path, ...] = ()
    taken: Taken = field(default_factory=dict)
    aside: Aside | None = field(default=None, repr=False, compare=False)
    _names: set[str] | None = field(default=None, repr=False, compare=False)
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @property
    def graph(self) -> GraphProto:
        """The main graph."""
        return self.skeleton.graph

    @classmethod
    def load(cls, source: str | os.PathLike[str] | ModelProto | Any) -> Model:
        """Load a path, bytes, a ModelProto, an onnx_graphsurgeon Graph or a Model; the source is never modified.
        UsageError where it is no whole ONNX model."""
        if isinstance(source, cls):
            return replace(source.copy(), taken={})  # to whoever loads it, it is a model like any other
        given = source_of(source)
        proto = given.proto
        store = ExternalData(given.path, given.inside)
        weights = {t.name: store.weight(t, k) for k, t in enumerate(proto.graph.initializer)}
        for tensor in inner_tensors(proto):
            if tensor.data_location == TensorProto.EXTERNAL:
                store.weight(tensor).fill(tensor)
        tensors = {t.name: t for t in proto.graph.initializer}
        bare = [described(tensors[n], w) for n, w in weights.items()]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(bare)
        # A second, small parse lets go of the memory that held the weights.
        return cls(ModelProto.FromString(proto.SerializeToString()), weights, given.path, tuple(store.files))

    def fresh_name(self, base: str) -> str:
        """`base`, numbered where a tensor or node has that name; never given twice."""
        if self._names is None:
            graphs = [scope.graph for scope in scopes(self.graph)]
            self._names = {x for g in graphs for n in g.node for x in (n.name, *n.input, *n.output)}
            self._names |= self.weights.keys() | {x for g in graphs for x in defined(g)}
        name, k = base, 2
        while name in self._names:
            name, k = f"{base}_{k}", k + 1
        self._names.add(name)
        return name

    def copy(self) -> Model:
        """An independent model that shares the weights, which nobody changes in place."""
        proto = ModelProto()
        proto.CopyFrom(self.skeleton)
        return Model(proto, dict(self.weights), self.path, self.data_files, self.taken)

    def put(self, name: str, values: Array, onnx_type: int | None = None) -> None:
        """Give a weight new values, of the type of the array unless another is said."""
        weight = Weight.of(values, onnx_type)
        if self.aside is not None and weight.onnx_type not in BITS:
            weight = Weight(weight.onnx_type, weight.shape, self.aside.put(weight.array()))
        self.weights[name] = weight

    def sync(self) -> None:
        """Make the initializers of `skeleton`, and what declares their shapes, follow `weights`."""
        graph, seen = self.graph, {t.name for t in self.graph.initializer}
        kept = [described(t, self.weights[t.name]) for t in graph.initializer if t.name in self.weights]
        kept += [described(TensorProto(name=n), w) for n, w in self.weights.items() if n not in seen]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for info in (*graph.input, *graph.value_info):
            weight, declared = self.weights.get(info.name), info.type.tensor_type
            if weight is None or not declared.HasField("shape"):
                continue
            if tuple(d.dim_value for d in declared.shape.dim) != weight.shape:
                info.type.CopyFrom(helper.make_tensor_type_proto(weight.onnx_type, weight.shape))

    def size(self) -> int:
        """Bytes that the saved model takes, to within a few per tensor."""
        return int(self.skeleton.ByteSize()) + sum(w.nbytes + 4 for w in self.weights.values())

    def _check_size(self) -> None:
        if self.size() > PROTOBUF_LIMIT:
            raise UsageError("the model is over 2 GB, too large for one protobuf; save it as external data")

    def to_proto(self) -> ModelProto:
        """The whole model in one ModelProto."""
        self._check_size()
        self.sync()
        proto = ModelProto()
        proto.CopyFrom(self.skeleton)
        for tensor in proto.graph.initializer:
            self.weights[tensor.name].fill(tensor)
        return proto

    def to_graphsurgeon(self) -> Any:
        """The whole model as an onnx_graphsurgeon Graph, to be edited and loaded again."""
        import onnx_graphsurgeon as gs

        return gs.import_onnx(self.to_proto())

    def save(
        self, path: str | os.PathLike[str], external: bool | None = None, also: Mapping[Path, str] | None = None,
        data: str = "",
    ) -> list[Path]:  # fmt: skip
        """Write atomically; `external` puts the weights into `<name>.data` beside it, or the name that `data` gives, by
        default where the source had such a file or the model is over 2 GB. Whatever was at `path` survives a failure,
        also of the texts to write with it (`also`). A link stays, and what it leads to is written. Returns the files
        that runs which were killed had left here, and that are gone now."""
        target = followed(Path(path))
        beside = target.with_name(data or f"{target.name}.data")
        if external is None:
            external = bool(self.data_files) or self.size() > PROTOBUF_LIMIT
        texts = also or {}
        outputs = [*texts, *([beside] if external else ()), target]
        check_outputs(outputs)
        in_place = self.path is not None and same_file(self.path, target)
        if not in_place and any(same_file(o, d) for o in outputs for d in self.data_files):
            raise UsageError(f"saving {target} would overwrite the weights of {self.path}; choose another name")
        with disk_errors(target), replacing(outputs, pair=external) as files:
            for name, text in texts.items():
                with created(files.temporary[name]) as write:
                    write(text.encode())
            if external:
                proto = self._write_data(files.temporary[beside])
                self._write_around(proto, files.tagged.name, files.bridge)
                self._write_around(proto, beside.name, files.temporary[target])
            else:
                self._write_whole(files.temporary[target])
        return files.removed

    def _write_whole(self, path: Path) -> None:
        """Stream the model to one file, one tensor at a time."""
        self._check_size()
        self.sync()
        with created(path) as write:
            stream(self.skeleton, self.weights, write)

    def _write_data(self, path: Path) -> ModelProto:
        """Stream the weights to `path`, one tensor at a time; the first entry of each in the returned proto is the
        location, which is open yet."""
        self.sync()
        proto = ModelProto()
        proto.CopyFrom(self.skeleton)
        offset = 0
        with created(path) as write:
            for tensor in proto.graph.initializer:
                weight = self.weights[tensor.name]
                raw = weight.raw() if weight.nbytes >= INLINE_LIMIT else None
                if raw is None:
                    weight.fill(tensor)
                    continue
                padding = -offset % (4096 if len(raw) >= 65536 else 64)
                write(bytes(padding))
                write(raw)
                weight.release()
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", ""), ("offset", offset + padding), ("length", len(raw))):
                    tensor.external_data.add(key=key, value=str(value))
                offset += padding + len(raw)
        return proto

    @staticmethod
    def _write_around(proto: ModelProto, location: str, path: Path) -> None:
        """Write what `_write_data` returned as a model that reads its weights at `location`."""
        for tensor in proto.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.external_data[0].value = location
        with created(path) as write:
            write(proto.SerializeToString())

    def session_source(self, folder: str | os.PathLike[str] | None = None) -> bytes | str:
        """What an ONNX Runtime session takes: bytes, or above 1.5 GB a file in `folder` (by default in a temporary one
        that lives as long as this model)."""
        if self.size() < SESSION_LIMIT:
            return bytes(self.to_proto().SerializeToString())
        if folder is None:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="onnxprune-")
            folder = self._folder.name
        path = Path(folder) / f"{uuid.uuid4().hex}.onnx"
        self.save(path, external=True)
        return str(path)

    def normalised(self) -> Model:
        """A working copy: functions inlined, constants (of bodies, too) as initializers of the main graph, every tensor
        and node under a name of its own, nodes in topological order, layers of a recurrent stack apart (`untie`)."""
        model = self.copy()
        if model.skeleton.functions:
            model.skeleton = inlined(model.skeleton)
        make_names_distinct(model.graph, model.fresh_name)
        room = FILLED_LIMIT
        for scope in reversed(scopes(model.graph)):  # an outer graph is copied with what it holds
            room = model._lift(scope.graph, room)
            set_nodes(scope.graph, sorted_nodes(scope.graph.node))
        untie(model.graph, model.weights, model.fresh_name, model._add)
        name_nodes(every_node(model.graph))
        count_axes_from_first(every_node(model.graph))
        return model

    def _lift(self, graph: GraphProto, room: int) -> int:
        """What is constant in a graph becomes a weight, but for what it gives out itself; what is filled with one value
        as long as there is `room` for it, in elements. Returns what room is left."""
        for sparse in graph.sparse_initializer:
            self._add(sparse.values.name, Weight.of(dense_of(sparse), sparse.values.data_type))
        del graph.sparse_initializer[:]
        fixed = {o.name for o in graph.output}
        if graph is not self.graph:
            fixed |= {i.name for i in graph.input}
            self._lift_initializers(graph, fixed)
        return self._lift_nodes(graph, fixed, room)

    def _lift_initializers(self, graph: GraphProto, fixed: set[str]) -> None:
        """Of a body, all but those that stay where they are because the body takes or gives them by name."""
        store = ExternalData(None)
        for tensor in graph.initializer:
            if tensor.name not in fixed:
                self._add(tensor.name, store.weight(tensor))
        retain(graph.initializer, lambda tensor: tensor.name in fixed)

    def _lift_nodes(self, graph: GraphProto, fixed: set[str], room: int) -> int:
        """Constant nodes, then those that are filled with one value and of a size that is constant now."""
        for as_weight in (constant, filled):
            stay = []
            for node in graph.node:
                weight = None if fixed.intersection(node.output) else as_weight(node, self.weights)
                if weight is not None and as_weight is filled:
                    room -= weight.size
                if weight is None or room < 0 or not node.output:
                    stay.append(node)
                else:
                    self._add(node.output[0], weight)
            set_nodes(graph, stay)
        return room

    def _add(self, name: str, weight: Weight) -> None:
        """A weight as an initializer of the main graph."""
        self.weights[name] = weight
        self.graph.initializer.append(described(TensorProto(name=name), weight))
        if self.skeleton.ir_version < 4 and all(i.name != name for i in self.graph.input):
            self.graph.input.append(helper.make_tensor_value_info(name, weight.onnx_type, weight.shape))


def opset(model: Model, domain: str = "") -> int:
    """The version of a domain's operators that a model asks for."""
    return next((o.version for o in model.skeleton.opset_import if o.domain in (domain, domain or "ai.onnx")), 1)
