"""Sessions of ONNX Runtime: weights shared, not copied; providers by short names; one line for what fails.

Knows sessions; of a model its bytes and what goes in and out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxprune import guard
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.model import Array, Model, needs, retain
from onnxprune.options import near
from onnxprune.run import stand_ins
from onnxprune.run.arena import share
from onnxprune.run.installed import how_to_get, onnx_runtime
from onnxprune.run.stand_ins import LACKS, lacked, with_stand_ins
from onnxprune.run.tensors import largest_first, on_host
from onnxprune.run.watched import in_place, watched
from onnxprune.steady import threads

PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider", "dnnl": "DnnlExecutionProvider", "xnnpack": "XnnpackExecutionProvider",
}  # fmt: skip
"""Short names of ONNX Runtime's execution providers."""
EXACT = {"CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}
"""Settings of a provider in sessions that work for a stage here. Floats of 32 bits are multiplied as such, not rounded
to 10 bits (TF32) as CUDA does unless it is told otherwise, and kernels are chosen by rule, not by which was quickest
today: a proof allows no more than on a processor, and two runs are alike."""
THREADS = {PROVIDERS["openvino"]: "num_of_threads", PROVIDERS["xnnpack"]: "intra_op_num_threads"}
"""How providers with threads of their own are told how many; others take those of the session, or heed
OMP_NUM_THREADS."""
SHARED = (np.float32, np.float64, np.float16, np.int8, np.uint8)
"""Types of the weights that a session reads where they are."""
SMALL = 1024
"""Weights of fewer bytes go into the session's own copy of the graph."""
FED = (np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int16, np.uint16)
"""Types of the weights that a session may be fed beside its inputs."""
PLACE = re.compile(r"(?<= )/\S+\.(?:h|cc|cpp):\d+ .*?\)(?: const)? (?=[A-Za-z'])")
"""Where in the source of ONNX Runtime an error was made: file, line, signature."""
LARGE = 1 << 16
"""Weights of more bytes are fed to a lean session."""
PACKED = {"MatMulNBits": 4}
"""Operators that are much slower (60 times for one row, three times for 128) on weights that they could not pack before
they run, and the input (a list of blocks) with which they pack none."""
FOLDED = 1 << 20
"""What a runtime computes once from constants it keeps as long as the session. What has more bytes a lean session
computes in every run, so that it goes after its last use, as everything does."""


def open_session(model: Model, providers: Sequence[str] = ("cpu",), one_of_many: bool = False) -> Any:
    """An InferenceSession that really uses all of `providers`, or a RuntimeFailure that says how to mend it.
    one_of_many: others follow, whose memory is the same (see `arena`)."""
    ort, wanted = onnx_runtime(), usable(providers)
    options = _own_options()
    shares = one_of_many and share(options, wanted)
    proto, held = shared(model)
    options.add_external_initializers(list(held), [ort.OrtValue.ortvalue_from_numpy(a) for a in held.values()])
    session = _of_a_stage(proto, model, options, wanted)
    session.held_weights, session.shares = held, shares  # the session reads them where they are
    return session


def _of_a_stage(proto: ModelProto, model: Model, options: Any, wanted: Sequence[str]) -> Any:
    """A session of `proto`, which is a form of `model` or of a piece of it: what has to lie in the memory of an input
    becomes an output, to be bound there, where it is none."""
    places, outputs = in_place(proto.graph), {o.name for o in proto.graph.output}
    beside = [name for name in places if name not in outputs]
    proto.graph.output.extend(map(helper.make_empty_tensor_value_info, beside))
    session = with_stand_ins(proto, wanted, lambda source: _made(source, options, wanted, EXACT))
    session.taken, session.in_place, session.beside = model.taken, places, beside
    return session


def _own_options() -> Any:
    """Of sessions that work for a stage here. No buffer is planned to take another's place: among sizes that are open
    and have no name ONNX Runtime compares each with all that are free, 8 s for 5,000 nodes, and what is freed after
    its last use is as good. Nor is one block planned for a second run of the same sizes, beside what the first took."""
    options = onnx_runtime().SessionOptions()
    options.intra_op_num_threads = threads()
    options.enable_mem_reuse = options.enable_mem_pattern = False
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # numpy works between the runs
    return options


def deployed(model: Model, providers: Sequence[str] = ("cpu",), count: int = 0, profile: str = "") -> Any:
    """An InferenceSession as an application makes it, from the whole file: for measuring time. `count` threads inside
    an operator, 0: as many as the runtime likes. `profile`: the prefix of the file that its profiler is to write.
    RuntimeFailure where it has no kernel for an operator, or does not load the model for another reason."""
    ort, wanted = onnx_runtime(), usable(providers)
    options = ort.SessionOptions()
    options.intra_op_num_threads = count or threads()
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    try:
        session = _made(model.session_source(), options, wanted, {})
    except RuntimeFailure as error:
        if (operator := LACKS.search(error.message)) is None:
            raise
        raise RuntimeFailure(
            f"the model cannot be timed here: ONNX Runtime has no kernel for {operator[1]}, and what stands in for it "
            "takes other times; leave the timing out, or time it with --providers that have one"
        ) from error
    session.taken, session.in_place = model.taken, in_place(model.graph)
    return session


def usable(providers: Sequence[str]) -> list[str]:
    """The full names of `providers`, where all of them are built into the installed runtime. UsageError for a name that
    no build has; RuntimeFailure where this one lacks it, or where there is no runtime at all."""
    ort = onnx_runtime()
    wanted = [PROVIDERS.get(name.lower(), name) for name in providers]
    for name in set(wanted) - set(ort.get_all_providers()):
        meant = near(name, (*PROVIDERS, *ort.get_all_providers())) or f"; take {', '.join(PROVIDERS)} or a full name"
        raise UsageError(f"there is no provider '{name}'{meant}")
    _refuse([name for name in wanted if name not in ort.get_available_providers()], built_in=False)
    if set(wanted) - {PROVIDERS["cpu"]}:
        ort.set_default_logger_severity(4)  # a provider that does not load is one line of ours, not pages of theirs
    if PROVIDERS["cuda"] in wanted and hasattr(ort, "preload_dlls"):
        with redirect_stdout(StringIO()):
            ort.preload_dlls()
    return wanted


def check_kernels(model: Model, providers: Sequence[str]) -> None:
    """RuntimeFailure at an operator that these providers are known to have no kernel for, and nothing stands in for."""
    stand_ins.check(model.skeleton, usable(providers))


def without_kernel(providers: Sequence[str]) -> frozenset[str]:
    """The operators of which it turned out that none of `providers` has a kernel, and that something stood in for."""
    return lacked(usable(providers))


def _made(source: bytes | str, options: Any, wanted: Sequence[str], settings: Mapping[str, Mapping[str, str]]) -> Any:
    options.log_severity_level = 4
    given = {name: dict(settings.get(name, {})) for name in dict.fromkeys((*wanted, PROVIDERS["cpu"]))}
    for name in given.keys() & THREADS.keys() if options.intra_op_num_threads else ():
        given[name][THREADS[name]] = str(options.intra_op_num_threads)
    try:
        with guard.bounded("loading the model into ONNX Runtime"):
            session = watched()(source, options, providers=[*given.items()])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        said = f"ONNX Runtime cannot load the model: {first_line(error)}"
        raise RuntimeFailure(f"{said}; export it again, or try another version of onnxruntime") from error
    _refuse([name for name in wanted if name not in session.get_providers()], built_in=True)
    return session


def _refuse(missing: Sequence[str], built_in: bool) -> None:
    if missing:
        names, where = ", ".join(missing), "cannot be used here" if built_in else "is not in the installed ONNX Runtime"
        raise RuntimeFailure(f"{names} {where}; {how_to_get(built_in, missing)}, or use --providers cpu")


class Session:
    """A lean session for proofs: `run` takes a feed for every input and returns the outputs (named in `outputs`).

    The graph is run as it is written, without fusions. Large weights are fed beside the inputs: a runtime copies and
    packs what it knows to be constant, and reads what it is fed where it is. So are those of `free`, however small:
    `run` takes others in their place, where `holds` says so. What operators of `PACKED` read stays constant. wanted:
    the full names of the providers."""

    def __init__(self, model: Model, providers: Sequence[str], free: Collection[str] = ()) -> None:
        self.model, self.wanted = model, usable(providers)
        packing = (n for n in model.graph.node if n.op_type in PACKED and not any(n.input[PACKED[n.op_type] :][:1]))
        self._packed = {name for node in packing for name in node.input} & model.weights.keys()
        self._free = {n for n in free if n in model.weights and model.weights[n].dtype in FED} - self._packed
        self._fed: dict[str, Any] = {}
        try:
            self._open(LARGE)
        except RuntimeFailure:  # a few operators take constants only
            self._open(0)
        self.used = tuple(self._session.get_providers())
        self.outputs = [o.name for o in self._session.get_outputs() if o.name not in self._session.beside]
        self.blocks = 1

    def _open(self, large: int) -> None:
        ort = onnx_runtime()
        options = _own_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_cpu_mem_arena = shares = share(options, self.wanted)
        options.add_session_config_entry("session.disable_prepacking", "0" if self._packed else "1")
        options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(FOLDED))
        proto, held = shared(self.model)
        fed = held.keys() - self._packed if large else ()
        self._fed = {n: held[n] for n in fed if held[n].nbytes > large or n in self._free}
        if large:
            self._fed |= {n: self.model.weights[n].array() for n in self._free - self._fed.keys()}
        _as_inputs(proto, self._fed)
        self._held = {n: a for n, a in held.items() if n not in self._fed}
        values = [ort.OrtValue.ortvalue_from_numpy(a) for a in self._held.values()]
        options.add_external_initializers(list(self._held), values)
        self._session = _of_a_stage(proto, self.model, options, self.wanted)
        self._session.packs, self._session.shares = bool(self._packed), shares
        self._fed = {n: self._session.placed(a) for n, a in self._fed.items()}  # once, not in every run

    def holds(self, names: Collection[str]) -> bool:
        """Whether `run` may be given other weights of these names."""
        return self._fed.keys() >= set(names)

    def run(
        self, feeds: Mapping[str, Array], names: Sequence[str] | None = None,
        weights: Mapping[str, Array] | None = None, last: bool = False,
    ) -> list[Any]:  # fmt: skip
        """All outputs, or those of `names`. weights: others, in the place of its own. last: no run follows soon that
        takes as much memory."""
        return [on_host(value) for value in self.made(feeds, names, weights, last)]

    def made(
        self, feeds: Mapping[str, Any], names: Sequence[str] | None = None,
        weights: Mapping[str, Array] | None = None, last: bool = False,
    ) -> list[Any]:  # fmt: skip
        """As `run`, but tensors stay on the session's device, and `feeds` may be such."""
        try:
            return self._made({**feeds, **self._fed, **(weights or {})}, names, last)
        except Exception:
            if not self._fed or weights:
                raise
            self._open(0)
            return self._made(feeds, names, last)

    def _made(self, feeds: Mapping[str, Any], names: Sequence[str] | None, last: bool) -> list[Any]:
        made: list[Any] = self._session.made(names, feeds, last)
        return made

    def placed(self, value: Any) -> Any:
        """What `made` is given, where it is read from: an array is brought there once."""
        return self._session.placed(value)

    def run_all(
        self, feeds: Sequence[Mapping[str, Array]], names: Sequence[Sequence[str]] | None = None
    ) -> list[list[Any]]:
        """The outputs for each of several feeds; `names`: which ones of each."""
        order, found = largest_first([feed.values() for feed in feeds]), dict[int, list[Any]]()
        for k in order:
            found[k] = self.run(feeds[k], None if names is None else names[k], last=k == order[-1])
        return [found[k] for k in range(len(feeds))]


def _as_inputs(proto: ModelProto, arrays: Mapping[str, Array]) -> None:
    """These initializers become inputs of the graph."""
    listed = {i.name for i in proto.graph.input}
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in proto.graph.initializer
        if t.name in arrays and t.name not in listed
    )
    retain(proto.graph.initializer, lambda tensor: tensor.name not in arrays)


def shared(model: Model) -> tuple[ModelProto, dict[str, Array]]:
    """The graph with its large weights marked as external, and these weights. What nobody reads is left out: a runtime
    drops it as it loads the graph, and then finds no place for the weight that it is handed."""
    model.sync()
    proto = ModelProto()
    proto.CopyFrom(model.skeleton)
    _without_unread(proto)
    held: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        weight = model.weights[tensor.name]
        if weight.nbytes < SMALL or weight.dtype not in SHARED or weight.nbytes != weight.size * weight.dtype.itemsize:
            weight.fill(tensor)
            continue
        held[tensor.name] = np.require(weight.array(), requirements=["C", "A"])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "shared"), ("offset", "0"), ("length", str(weight.nbytes))):
            tensor.external_data.add(key=key, value=value)
    return proto, held


def _without_unread(proto: ModelProto) -> None:
    """Drop the initializers that no node, no body and no output reads, and the inputs that declare them."""
    read = {o.name for o in proto.graph.output}.union(*map(needs, proto.graph.node))
    unread = {t.name for t in proto.graph.initializer} - read
    retain(proto.graph.initializer, lambda tensor: tensor.name in read)
    retain(proto.graph.input, lambda info: info.name not in unread)


def first_line(error: BaseException) -> str:
    """What ONNX Runtime says, without the place in its source, and the pages that may follow."""
    lines = PLACE.sub("", str(error).strip()).splitlines()
    return lines[0][:300] if lines else type(error).__name__
