"""The command in a process of its own: what crashes or never returns ends it in one line, and nothing else.

ONNX Runtime and onnx are native code, where a file may read past the end of something or turn in a circle. So the work
is done in a child that is forked before anything is loaded, and its parent does no more than wait. Knows processes and
seconds, nothing of models.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from types import FrameType

UNGUARDED = "ONNXPRUNE_UNGUARDED"
"""Set in the environment: no process is started to guard another one. It is set in those that are guarded."""
PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")
TWICE = 1.0
"""Seconds in which a second Ctrl-C is the first one again: a terminal sends it to parent and child."""
POLL = 0.5
FAILED, INTERRUPTED, SIGNALLED = 4, 130, 128
BAR_GONE = "\r\x1b[K\x1b[?25h"
"""Clears the line of a progress bar whose process has ended, and brings the cursor back."""
_bounds: list[tuple[float, str, str]] = [(inf, "", "the run")]
"""What goes on, the innermost last: until when it may, the line for when it has not ended then, and what it is."""
_pipe = -1
patience = 60.0
"""Seconds that one call of the runtime may take; more for larger models (see `wait_for`)."""


def wait_for(macs: float, size: float) -> None:
    """Be patient with a model of so many multiply-accumulates a sample and bytes of weights: what a hundredth of a
    processor could do."""
    global patience
    patience = 60 + macs / 1e7 + size / 1e7


@contextmanager
def bounded(what: str, seconds: float | None = None) -> Iterator[None]:
    """What is done inside may take so many seconds (`patience` by default); after that a guarded process is ended, and
    the line that is printed says `what` did not end."""
    seconds = patience if seconds is None else seconds
    _bounds.append((time.monotonic() + seconds, late(what, seconds), what))
    _announce()
    try:
        yield
    finally:
        _bounds.pop()
        _announce()


def _announce() -> None:
    if _pipe >= 0:
        deadline, too_late = min((deadline, too_late) for deadline, too_late, _ in _bounds)
        with suppress(OSError):
            os.write(_pipe, f"{deadline} {too_late}|{_bounds[-1][2]}\n".encode())


def complain_as(form: str) -> None:
    """The line for what ends a guarded process is to be in this form (see `supervised`)."""
    if _pipe >= 0:
        with suppress(OSError):
            os.write(_pipe, f"as {form}\n".encode())


def late(what: str, seconds: float) -> str:
    """The line for what did not end in so many seconds."""
    return f"{what} did not end within {seconds:.0f} s; give smaller inputs with --overwrite-input-shape"


def crashed(what: str, number: int) -> str:
    """The line for what was ended by a signal."""
    if number == getattr(signal, "SIGKILL", 9):
        return f"{what} was killed, as happens where memory runs out; allow less with --memory"
    name = signal.Signals(number).name
    return f"{what} crashed ({name}) on this model; try another version of onnx and onnxruntime, and tell them of it"


def _plainly(message: str, form: str) -> None:
    print(f"onnxprune: error: {message}", file=sys.stderr)


def supervised(job: Callable[[], int], complain: Callable[[str, str], None] = _plainly) -> int:
    """The exit code of `job`, done in a child; where that is ended by a signal or by a bound, one line says so, by
    `complain`, which is given the form that the child asked for, or "". Where processes cannot be forked, or somebody
    has set ONNXPRUNE_UNGUARDED, the job is done here."""
    if not hasattr(os, "fork") or os.environ.get(UNGUARDED):
        return job()
    forwarded = {getattr(signal, name) for name in PASSED_ON}
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    reading, writing = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        os.close(reading)
        _guarded(writing, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        code = job()
        with suppress(OSError):
            os.write(writing, f"exit {code}\n".encode())
        return code
    os.close(writing)
    for number in forwarded:
        signal.signal(number, lambda received, _: _send(pid, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    return _outcome(pid, reading, complain)


def _guarded(pipe: int, parent: int) -> None:
    """From here on this process is the child: it announces its bounds to the parent, and ends with it."""
    global _pipe
    _pipe = pipe
    os.environ[UNGUARDED] = "1"
    signal.signal(signal.SIGINT, _interrupted_once())
    from onnxprune import heap  # only here: it loads what the parent does without

    heap.one_for_all()
    heap.put_off()
    if sys.platform == "linux":  # whoever kills the parent means the run
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(INTERRUPTED)


def _interrupted_once() -> Callable[[int, FrameType | None], None]:
    """A handler that raises KeyboardInterrupt once for a Ctrl-C that comes twice."""
    last = -inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > TWICE:
            last = now
            raise KeyboardInterrupt

    return interrupt


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _outcome(pid: int, pipe: int, complain: Callable[[str, str], None]) -> int:
    """Waits for the child, and ends it where it is late."""
    deadline, announced, code, ended_late = inf, f"|{_bounds[0][2]}", None, False
    rest, form = b"", ""
    while True:
        before = time.monotonic()
        left = max(0.0, min(POLL, deadline - before))
        data = os.read(pipe, 1 << 16) if select.select([pipe], [], [], left)[0] else None
        deadline += max(0.0, time.monotonic() - before - left - POLL)  # both were stopped for so long
        if data:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                first, _, text = line.decode(errors="replace").partition(" ")
                if first == "exit":
                    code = int(text)
                elif first == "as":
                    form = text
                else:
                    deadline, announced = float(first), text
            continue
        done, status = os.waitpid(pid, 0 if data == b"" else os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            ended_late = True
            _send(pid, signal.SIGKILL)
    too_late, _, what = announced.partition("|")
    message, code = _verdict(os.waitstatus_to_exitcode(status), code, what, too_late if ended_late else "")
    if message:
        print(BAR_GONE if sys.stderr.isatty() else "", end="", file=sys.stderr)
        complain(message, form)
    return code


def _verdict(ended: int, code: int | None, what: str, late: str) -> tuple[str, int]:
    """The line for what ended in another way than by its exit code, and that code. A process that had done its work
    (`code`) may crash when its libraries are unloaded."""
    if ended >= 0 or code is not None:
        return "", ended if ended >= 0 else int(code or 0)
    if -ended == signal.SIGINT:
        return "interrupted", INTERRUPTED
    if -ended in (signal.SIGTERM, signal.SIGHUP):
        return "", SIGNALLED - ended
    return late or crashed(what, -ended), FAILED
