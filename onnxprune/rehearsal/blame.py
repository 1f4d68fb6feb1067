"""Whose fault is it? A model that nobody can run breaks the rules that others keep: the user is to hear that.

Knows the runtime and the errors, nothing of how a model is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from onnxprune.data import RANGES, random_inputs
from onnxprune.errors import OnnxPruneError, RuntimeFailure, UsageError
from onnxprune.heap import settled
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.progress import told
from onnxprune.run import first_line, opened
from onnxprune.shapes import footprint, hazards, infer

P = ParamSpec("P")
T = TypeVar("T")


def blame_model(job: Callable[P, T]) -> Callable[P, T]:
    """`job(model, ...)`, where an error that nobody meant to raise is one about the model if ONNX Runtime cannot load
    or run that model either. Where it can, the error is a bug, and comes through as it is. It is a run whose stages are
    told."""
    job = told(job)

    @wraps(job)
    def run(*args: P.args, **kw: P.kwargs) -> T:
        with settled(), blaming((*args, *kw.values())):
            return job(*args, **kw)

    return run


@contextmanager
def blaming(given: Sequence[Any]) -> Iterator[None]:
    """The same of what is done inside; `given`: the model, and an `Options` somewhere after it."""
    try:
        yield
    except (OnnxPruneError, OSError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise UsageError("a name in the model is no text (UTF-8); the file is damaged, export it again") from error
    except Exception as error:
        try:
            run_once(Model.load(given[0]), next((a for a in given if isinstance(a, Options)), Options()))
        except OnnxPruneError as why:
            raise why from error
        except Exception:
            raise error from None
        raise


def run_once(model: Model, options: Options, inferred: Callable[[], None] = lambda: None) -> None:
    """Raises where a model as it was given cannot be loaded, or run on small inputs. Calls `inferred` once its shapes
    are known."""
    shapes = infer(model, options.input_shapes, options.memory_limit)
    inferred()
    session = opened(model, options, shapes.dtype)
    last: Exception = Exception()
    for state, sizes in zip(shapes.passes, shapes.inputs, strict=True):
        footprint.check(model, state, options.memory_limit)
        hazards.check(model, state)
        for low, high in RANGES:
            try:
                session.run(random_inputs(model, sizes, options.seed, high, low))
                return
            except Exception as error:  # ONNX Runtime's errors have no common base
                last = error
    raise RuntimeFailure(f"ONNX Runtime cannot run the model: {first_line(last)}")
