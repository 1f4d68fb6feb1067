"""What a run says on its way: every stage with its seconds, to the log and to whoever gave a callback.

A stage that has ended is one record of the logger `onnxprune.progress`, at INFO, with the attributes `stage`, `seconds`
(how long it took) and `share` (of the stage, that is done). While one lasts a record says so every half a minute, and
how long the rest may take. What goes on inside a stage, such as the turns of a search, is at DEBUG. Knows names,
seconds and shares; nothing of models.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from threading import Event, RLock, Thread
from typing import ParamSpec, TypeVar, cast

from onnxprune.errors import in_python
from onnxprune.options import Progress

P = ParamSpec("P")
T = TypeVar("T")
EVERY = 30.0
"""Seconds after which a run that has said nothing says that it lives."""
TELLING = 0.02
"""Share of a stage that must be done before what is left of it is estimated."""
log = logging.getLogger(__name__)


class Stages:
    """The stages of one run, one after the other: a call tells the name of the present one and the share of it that is
    done. What follows a colon changes on the way and is no part of the name. progress: who is told as well. outer: the
    run that this one is a part of."""

    def __init__(self, progress: Progress | None = None, outer: Stages | None = None) -> None:
        self.progress = progress
        self.level = logging.INFO if outer is None else logging.DEBUG
        self.warned: set[str] = set() if outer is None else outer.warned
        self.stage = self.detail = ""
        self.share = 0.0
        self._began = self._spoke = time.monotonic()
        self._lock = RLock()  # shares come from several threads, and who says that a run lives is one more

    def __call__(self, stage: str, share: float = 0.0) -> None:
        name, _, detail = stage.partition(": ")
        with self._lock:
            if name != self.stage:
                self.end()
                self.stage, self.share, self._began = name, 0.0, time.monotonic()
            self.share, self.detail = max(self.share, share), detail
        if self.progress:
            self.progress(stage, self.share)

    def done(self, share: float) -> None:
        """So much of the present stage, whichever that is."""
        if self.stage:
            self(self.stage, share)

    @property
    def seconds(self) -> float:
        """How long the present stage has lasted."""
        return time.monotonic() - self._began

    def end(self) -> None:
        """The present stage has ended, and no other begins."""
        with self._lock:
            if self.stage:
                self.share = 1.0
                self._say(f"{self.stage} {self.seconds:.1f} s")
            self.stage = ""

    def step(self, what: str, share: float) -> None:
        """Of the present stage `share` is done now, and that was `what`: a line of its own."""
        with self._lock:
            self.share = max(self.share, share)
            self._say(f"{self.stage}: {what} ({self.share:.0%} after {self.seconds:.1f} s)")
        if self.progress:
            self.progress(f"{self.stage}: {what}", self.share)

    def warn(self, text: str) -> None:
        """What the user should know before the run has ended, once. `text` names flags; the log names keywords, and has
        the flags in the attribute `flags`."""
        if text not in self.warned:
            self.warned.add(text)
            log.warning("%s", in_python(text), extra={"flags": text})

    def due(self) -> float:
        """Seconds until it is time to say that the run lives."""
        return max(0.0, self._spoke + EVERY - time.monotonic())

    def live(self) -> None:
        """Say so, where it is time."""
        with self._lock:
            if self.due():
                return
            self._spoke = time.monotonic()
            if self.stage:
                done = f"{self.share:.0%} done" if self.share else "not done yet"
                said = f"{', '.join(filter(None, (self.detail, done)))} after {self.seconds:.0f} s"
                self._say(f"{self.stage}: {said}{self._left()}")

    def _left(self) -> str:
        """How long the rest of the stage takes if it goes on like this; nothing where too little is done to tell."""
        if self.share < TELLING:
            return ""
        left = self.seconds * (1 / self.share - 1)
        return f", about {left:.0f} s left" if left < 100 else f", about {left / 60:.0f} min left"

    def _say(self, message: str) -> None:
        self._spoke = time.monotonic()
        known = {"stage": self.stage, "seconds": round(self.seconds, 3), "share": round(self.share, 4)}
        log.log(self.level, "%s", message, extra=known)


_now: ContextVar[Stages | None] = ContextVar("stages", default=None)


def now() -> Stages:
    """The stages of the run that goes on, or new ones that nobody but the log hears of."""
    return _now.get() or Stages()


@contextmanager
def telling(progress: Progress | None = None) -> Iterator[Stages]:
    """The stages of what is done inside. A run within a run goes on with the outer one's, unless it has a `progress` of
    its own."""
    outer = _now.get()
    if outer is not None and progress is None:
        yield outer
        return
    stages = Stages(progress, outer)
    with _present(stages), _alive(stages) if outer is None else nullcontext():
        yield stages
        stages.end()


@contextmanager
def inside(stage: str, share: float) -> Iterator[Stages]:
    """What is done inside is a part of the present `stage`, of which `share` was done before: its own stages are
    details."""
    outer = now()
    outer(stage, share)
    more = ", " if ": " in stage else ": "
    stages = Stages(lambda name, _: outer(f"{stage}{more}{name}", share), outer)
    with _present(stages):
        yield stages
        stages.end()


def told(job: Callable[P, T]) -> Callable[P, T]:
    """`job(..., progress=None)` as a run whose stages are told."""

    @wraps(job)
    def run(*args: P.args, **kw: P.kwargs) -> T:
        with telling(cast("Progress | None", kw.get("progress"))):
            return job(*args, **kw)

    return run


@contextmanager
def _present(stages: Stages) -> Iterator[None]:
    token = _now.set(stages)
    try:
        yield
    finally:
        _now.reset(token)


@contextmanager
def _alive(stages: Stages) -> Iterator[None]:
    """While it is open a thread says that these stages go on, where somebody listens."""
    ended = Event()

    def beat() -> None:
        while not ended.wait(stages.due()):
            stages.live()

    if log.isEnabledFor(stages.level):
        Thread(target=beat, name="onnxprune progress", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
