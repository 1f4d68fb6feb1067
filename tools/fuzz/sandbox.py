"""Run one function in a fresh fork with bounds on time and memory: whatever it does to itself, the parent goes on."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL = 0.01
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Ended:
    """How a fork ended: `how` is exit, signal, timeout or memory; `code` the exit code or the signal's number."""

    how: str
    code: int
    seconds: float
    peak: int
    out: str
    err: str


def run(job: Callable[[], int], folder: Path, seconds: float, memory: int) -> Ended:
    """Fork, run `job` with stdout and stderr in `folder`, kill it where it takes over `seconds` or `memory` bytes of
    resident memory (address space says little: a runtime maps far more than it uses)."""
    out, err = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(job, out, err)
    how, status, peak = "", 0, 0
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            peak = max(peak, usage.ru_maxrss * 1024)
            break
        peak = max(peak, _resident(pid))
        if peak > memory or time.monotonic() - start > seconds:
            how = "memory" if peak > memory else "timeout"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(POLL)
    if not how and peak > memory:
        how = "memory"
    code = os.waitstatus_to_exitcode(status)
    how = how or ("signal" if code < 0 else "exit")
    texts = [p.read_text(errors="replace") if p.exists() else "" for p in (out, err)]
    return Ended(how, abs(code), time.monotonic() - start, peak, *texts)


def _child(job: Callable[[], int], out: Path, err: Path) -> None:
    """Never returns."""
    code = 70
    try:
        os.setsid()
        for path, number in ((out, 1), (err, 2)):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        faulthandler.enable()
        code = job()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _resident(pid: int) -> int:
    """Of a process and of those that it has started."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError, ValueError):
        return 0
    return own + sum(_resident(int(child)) for child in children)
