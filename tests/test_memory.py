"""What calibration takes of the memory: worked out beforehand, against counts by hand, real walks and a real process."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Shape, graph, inputs
from onnx import ModelProto
from test_allocate import attention
from test_shifted import perceptron

from onnxprune.api import prune
from onnxprune.fit import Site, Walk, compared, layers, reconstruction, weigh
from onnxprune.fit.reconstruction import Reconstruction
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed, pruner
from onnxprune.planning import calibrated, memory
from onnxprune.rewrite import rewrite
from onnxprune.run import on_host
from onnxprune.trace import Groups

SAME = "pads=[1,1,1,1]"


def grouped(model: ModelProto) -> Groups:
    return analysed(Model.load(model), Options(), Clock())


def residual(end: str = "", size: int = 12) -> ModelProto:
    """A shortcut, a channelwise layer, a strided one, a classifier."""
    return graph(
        f"(float[N,3,{size},{size}] x) => (float[N,40] y)",
        f"""
        a = Conv<{SAME}>(x, w0) b = Relu(a) c = Conv<{SAME}>(b, w1) d = Clip(c, low, high)
        e = Conv<{SAME}, group=20>(d, w2) f = Relu(e) g = Conv(f, w3) h = Add(g, b)
        i = Conv<{SAME}, strides=[2,2]>(h, w4) j = Relu(i) p = GlobalAveragePool(j) q = Flatten(p)
        {"l = Gemm<transB=1>(q, w5, b5) y = Softmax(l)" if end else "y = Gemm<transB=1>(q, w5, b5)"}
        """,
        w0=(16, 3, 3, 3), w1=(20, 16, 3, 3), low=np.float32(0), high=np.float32(6), w2=(20, 1, 3, 3),
        w3=(16, 20, 1, 1), w4=(24, 16, 3, 3), w5=(40, 24), b5=(40,),
    )  # fmt: skip


def moments(*sites: tuple[int, int, int], weights: Sequence[Shape]) -> int:
    """Of sites (groups, columns, outputs), beside what sessions hold of the weights."""
    solved = max(memory.SOLVED * k * k + memory.CROSSED * k * o for _, k, o in sites)
    held = sum(g * k * (4 * k + 8 * o) for g, k, o in sites) + 8 * solved
    return held + 2 * 4 * sum(int(np.prod(shape)) for shape in weights)


@pytest.mark.parametrize("end", ["", "softmax"])
def test_the_end_of_a_net_makes_no_kernel_of_its_classes(end: str) -> None:
    """The classes go as one behind a Softmax; the window of a convolution does so, too, but is summed over."""
    model = residual(end)
    weights = [tuple(t.dims) for t in model.graph.initializer]
    sites = (1, 16 * 9, 20), (1, 20, 16), (1, 16 * 9, 24), (1, 24, 40)
    assert memory.needs(grouped(model), Options()).memory == moments(*sites, weights=weights)


def test_wide_windows_fit_into_what_is_allowed_where_nothing_is_said() -> None:
    """A window of 64 samples of 128 channels has 8,192 columns, in a network of half a megabyte."""
    model = graph(
        "(float[N, 1, 256, 1] x) => (float[N, 8, 192, 1] y)", "a = Conv(x, v) b = Relu(a) y = Conv(b, w)",
        v=(128, 1, 2, 1), w=(8, 128, 64, 1),
    )  # fmt: skip
    memory.checked(grouped(model), Options())


def test_inputs_of_a_recurrent_layer_are_no_kernel() -> None:
    """Its weights have three axes, and a unit is one column of them: 32 inputs and 32 states here."""
    model = graph(
        "(float[6, N, 32] x) => (float[6, N, 5] y)",
        """
        a = MatMul(x, w0) b = Relu(a) l = LSTM<hidden_size = 32>(b, w, r) s = Squeeze(l, one) y = MatMul(s, w1)
        """,
        w0=(32, 32), w=(1, 128, 32), r=(1, 128, 32), one=np.array([1]), w1=(32, 5),
    )  # fmt: skip
    assert memory.needs(grouped(model), Options()).memory < 2 << 20


def recurrent() -> ModelProto:
    return graph(
        "(float[6,N,10] x) => (float[6,N,3] y)",
        """
        a = MatMul(x, w0) l, m = LSTM<hidden_size = 8>(a, w1, r1) s = Squeeze(l, one) b = Relu(s)
        k, n = GRU<hidden_size = 7>(b, w2, r2) t = Squeeze(k, one) y = MatMul(t, w3)
        """,
        w0=(10, 12), w1=(1, 32, 12), r1=(1, 32, 8), one=np.array([1]), w2=(1, 21, 8), r2=(1, 21, 7), w3=(7, 3),
    )  # fmt: skip


NETS = {
    "recurrent": recurrent,
    "conv": residual,
    "softmax": lambda: residual("softmax"),
    "mlp": perceptron,
    "attention": attention,
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_what_is_weighed_is_what_walks_hold(net: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte at every layer, while a network of which nothing was cut is looked at."""
    groups = grouped(net())  # type: ignore[operator]
    trace = groups.trace
    feeds = [inputs(net(), 3, seed) for seed in range(2)]  # type: ignore[operator]
    walks: list[Walk] = []
    held: list[int] = []

    class Counted(Walk):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            walks.append(self)

        def value(self, name: str) -> list[np.ndarray]:
            found = super().value(name)
            held[-1] = max(held[-1], sum(on_host(x).nbytes for w in walks for v in w.values.values() for x in v))
            return found

    class Weighed(Reconstruction):
        def _changed(self) -> list[int]:
            return list(range(len(trace.nodes)))  # or no layer were looked at

        def _refit(self, *asked: object) -> object:  # type: ignore[override]
            held.append(0)
            return super()._refit(*asked)  # type: ignore[arg-type]

    for module in (reconstruction, compared):
        monkeypatch.setattr(module, "Walk", Counted)
    kept = np.ones(trace.labels.n, bool)
    Weighed(trace, kept, rewrite(trace, kept), feeds, 0).run()
    shapes = {name: x.shape for name, x in feeds[0].items()}
    found = [2 * h.walked for h in weigh(trace, lambda name: trace.shapes.where(name, shapes), refit=True)]
    assert len(held) == len(layers(trace.model, trace.rank)) >= 2
    assert found == held
    once = [h.walked for h in weigh(trace, lambda name: trace.shapes.where(name, shapes), refit=False)]
    assert all(0 < a < 2 * b for a, b in zip(once, found, strict=True))


def test_more_memory_takes_more_samples() -> None:
    groups = grouped(residual(size=64))
    few, many = (memory.samples_that_fit(groups, Options(memory=m << 20)) for m in (150, 300))
    assert 10 < few < many < 3 * few
    only = memory.samples_that_fit(groups, Options(memory=150 << 20, reconstruct="merge"))
    assert only > 1.3 * few, "statistics alone need one walk"


def test_samples_count_as_large_as_they_are() -> None:
    """However long those are that would be made up."""
    model = graph("(float[N, L, 8] x) => (float[N, L, 8] y)", "a = MatMul(x, v) b = Relu(a) y = MatMul(b, w)",
                  v=(8, 64), w=(64, 8))  # fmt: skip
    groups = grouped(model)

    def taken(length: int) -> int:
        data = [{"x": np.random.default_rng(0).standard_normal((100, length, 8), np.float32)}]
        return calibrated(groups, Options(memory=200 << 20, calib=data).resolved()).samples

    short, long = taken(3), taken(3000)
    assert short == 100
    assert 1 <= long < 50


MEASURED = """
import sys, onnxprune
model, data, memory = sys.argv[1:]
report = onnxprune.prune(model, ratio=0.3, of="macs", calib=data, memory=int(memory)).report
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(report.reconstruction["samples"], peak)
"""  # not getrusage's ru_maxrss: a child begins with what the process that started it once took


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("end", ["", "softmax"])
def test_a_process_takes_most_of_what_it_is_given_and_no_more(end: str, tmp_path: Path) -> None:
    """As the system counts it, with all that Python and its libraries take."""
    onnx.save(residual(end, 128), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((400, 3, 128, 128), np.float32))
    given = 1200 << 20
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "net.onnx", tmp_path / "x.npy", str(given)], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    samples, peak = map(int, done.stdout.split())
    assert samples < 400, "or nothing is bounded here"
    assert 0.6 * given <= peak <= given


def test_statistics_are_gone_when_layers_are_solved_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide which units go, and nothing asks for them afterwards."""
    held: list[int] = []
    begun = pruner.refitted
    others = {id(o): o for o in gc.get_objects() if isinstance(o, Site)}  # of tests before this one

    def refitted(*given: object) -> object:
        gc.collect()
        held.append(sum(isinstance(o, Site) and id(o) not in others for o in gc.get_objects()))
        return begun(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(pruner, "refitted", refitted)
    found = prune(residual(), ratio=0.3, of="macs", calib_samples=32)
    assert found.report.curves
    assert held == [0]
