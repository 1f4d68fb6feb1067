"""A model is tried in a helper before it is run here: what crashes or never returns does so there.

For whoever calls the API: the command line guards the whole of a run (see `guard`). The helper is this package in
another Python, started once for each process that prunes, and ends with it; it is given the path of a model, or the
bytes of one that has no path. Knows processes and how a model is tried, not what is done with it afterwards.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, BinaryIO

from onnxprune import guard, heap
from onnxprune.errors import OnnxPruneError, RuntimeFailure

if TYPE_CHECKING:
    from onnxprune.model import Model
    from onnxprune.options import Options

START = """import json, sys
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from onnxprune.rehearsal.helpers import serve
serve()
"""
STARTING = 60.0
"""Seconds that a helper may take to start."""
LARGE = 1 << 28
"""A helper that has tried a model of more bytes is ended: the memory goes with it."""
INFERRED, RUN = "inferred", "run"


def trials_wanted() -> bool:
    """Whether there is a Python to start: a program that carries its own would start itself."""
    return not os.environ.get(guard.UNGUARDED) and bool(sys.executable) and not getattr(sys, "frozen", False)


@dataclass
class Trial:
    """One model that is being tried. Without a helper nothing is waited for."""

    helper: Helper | None = None
    number: int = 0
    size: int = 0

    def wait_until_inferred(self, nodes: int) -> None:
        """Waits until the shapes of the model were inferred; RuntimeFailure where that ended the helper."""
        self._wait(INFERRED, STARTING + nodes / 100, "shape inference")

    def wait_until_run(self) -> None:
        """Waits until the model was loaded and run once, for as long as `guard.patience` has it."""
        self._wait(RUN, guard.patience, "running the model in ONNX Runtime")

    def _wait(self, stage: str, seconds: float, what: str) -> None:
        if self.helper is not None:
            self.helper.wait(f"{self.number} {stage}", seconds, what)

    def reusable(self) -> bool:
        """Whether the helper may be asked again."""
        return self.helper is not None and f"{self.number} {RUN}" in self.helper.heard and self.size <= LARGE


@dataclass
class Helper:
    """The process, and the lines it says: `ready`, then the number of a trial with what it has survived."""

    process: subprocess.Popen[bytes]
    owner: int = field(default_factory=os.getpid)
    said: Queue[str] = field(default_factory=Queue)
    trials: int = 0
    heard: set[str] = field(default_factory=set)

    @classmethod
    def started(cls) -> Helper | None:
        """None where no process can be started."""
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=os.environ | {guard.UNGUARDED: "1"},
            )  # fmt: skip
        except OSError:
            return None
        helper = cls(process)
        Thread(target=helper._listen, daemon=True).start()
        atexit.register(helper.end)
        helper._write(json.dumps(sys.path).encode() + b"\n")
        return helper

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.said.put(line.decode().strip())
        self.said.put("")

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):  # whoever waits for an answer hears that there is none
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def begin(self, model: Model, options: Options) -> Trial:
        """Have it try a model, whose bytes are sent while others work."""
        self.trials += 1
        data = b"" if model.path is not None else model.to_proto().SerializeToString()
        asked = {
            "number": self.trials, "path": str(model.path.absolute()) if model.path else "", "size": len(data),
            "input_shapes": {n: list(s) for n, s in options.input_shapes.items()}, "memory": options.memory_limit,
            "seed": options.seed,
        }  # fmt: skip
        Thread(target=self._write, args=(json.dumps(asked).encode() + b"\n" + data,), daemon=True).start()
        return Trial(self, self.trials, sum(w.nbytes for w in model.weights.values()))

    def wait(self, line: str, seconds: float, what: str) -> None:
        """Wait until it says the line. RuntimeFailure where the helper ended, or the line was not said in time."""
        deadline = time.monotonic() + seconds
        while line not in self.heard:
            try:
                said = self.said.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                self.end()
                raise RuntimeFailure(guard.late(what, seconds)) from None
            if not said:
                self._lost(what)
                return
            self.heard.add(said)

    def _lost(self, what: str) -> None:
        code = self.process.wait()
        self.end()
        if "ready" not in self.heard:
            return self.said.put("")  # it never came up: a machine on which there is no helper, whatever is waited for
        raise RuntimeFailure(guard.crashed(what, -code) if code < 0 else f"{what} ended the process that tried it")

    def end(self) -> None:
        """Kill the process, where it is this one's; a fork leaves it to its parent."""
        atexit.unregister(self.end)
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            with suppress(OSError, ValueError):  # somebody may still write to it
                self.process.stdin.close()


_idle: list[Helper] = []
_lock = Lock()


@contextmanager
def begun(model: Model, options: Options) -> Iterator[Trial]:
    """The trial of a model, which goes on while others work. There is none to wait for in a guarded process, nor of a
    model that has no file and is too large to be sent."""
    from onnxprune.model import SESSION_LIMIT

    in_memory = model.path is None and model.size() > SESSION_LIMIT
    helper = _idle_or_new() if trials_wanted() and not in_memory else None
    tried = Trial() if helper is None else helper.begin(model, options)
    try:
        yield tried
    finally:
        with _lock:
            if helper is not None and tried.reusable() and not _idle:
                _idle.append(helper)
            elif helper is not None:  # busy with what nobody waits for any more, or one of several
                helper.end()


def _idle_or_new() -> Helper | None:
    """A helper that is idle and of this process, or a new one."""
    with _lock:
        while _idle:
            helper = _idle.pop()
            if helper.owner == os.getpid() and helper.process.poll() is None:
                return helper
    return Helper.started()


def serve() -> None:
    """The helper: tries what it is asked to, one model after the other, until nobody asks any more."""
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer

    def say(line: str) -> None:
        print(line, file=answers, flush=True)

    heap.put_off()
    from onnxprune.rehearsal import blame  # noqa: F401

    say("ready")
    with heap.settled():
        while line := asked.readline():
            _try(json.loads(line), asked, say)


def _try(asked: dict[str, Any], data: BinaryIO, say: Callable[[str], None]) -> None:
    from onnx import ModelProto

    from onnxprune.model import Model
    from onnxprune.options import Options
    from onnxprune.rehearsal.blame import run_once

    number = asked["number"]
    source = asked["path"] or ModelProto.FromString(data.read(asked["size"]))
    options = Options(input_shapes=asked["input_shapes"], memory=asked["memory"], seed=asked["seed"])
    with suppress(OnnxPruneError, Exception):  # an error is no crash: the caller will meet it
        run_once(Model.load(source).normalised(), options, lambda: say(f"{number} {INFERRED}"))
    say(f"{number} {INFERRED}")
    say(f"{number} {RUN}")
