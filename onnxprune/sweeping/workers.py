"""Processes that work on many things at a time: here, or in a cluster of Dask or Ray.

Knows joblib and the clusters that it can use, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from onnxprune.errors import RuntimeFailure, UsageError

Backend = Literal["loky", "dask", "ray"]
EACH = 4
"""Points that a process makes at least, where nobody says how many processes there are: it starts, and makes inputs and
statistics of its own."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def processes(count: int) -> int:
    """How many are worth it for so many items."""
    import joblib

    return max(1, min(int(joblib.cpu_count()), count // EACH))


@contextmanager
def workers(
    function: Callable[[Item], Result], backend: Backend, address: str | None, count: int | None
) -> Iterator[Callable[[Sequence[Item]], Iterator[Result]]]:
    """What runs `function` on items and yields the results as they come. count: of processes (one: this one); None: all
    of the cluster at `address`, or as many as there are cores.

    UsageError where the cluster's package is not installed, RuntimeFailure where no cluster answers."""
    import joblib
    from joblib.externals import loky

    cluster: dict[str, Any] = {}
    ended: Callable[[], Any] | None = None
    if backend == "dask":
        cluster = {"client": _client(address, count)}
    elif backend == "ray":
        ended = _register_ray(address)

    def parallel(items: Sequence[Item]) -> Iterator[Result]:
        jobs = count or (joblib.cpu_count() if backend == "loky" else -1)
        if backend == "loky" and jobs > 1:
            jobs = max(2, min(jobs, len(items)))  # joblib runs the jobs of a single one in this process
        order = "list" if backend == "ray" else "generator_unordered"
        with joblib.parallel_config(backend, n_jobs=jobs, **cluster):
            yield from joblib.Parallel(return_as=order, batch_size=1)(joblib.delayed(function)(item) for item in items)

    try:
        yield parallel
        if backend == "loky" and count != 1:
            loky.get_reusable_executor(reuse=True).shutdown()  # idle processes would keep what they hold for minutes
    finally:
        if "client" in cluster:
            cluster["client"].close()
        if ended is not None:
            ended()


def _client(address: str | None, count: int | None) -> Any:
    """Of the Dask cluster at `address`, or of one of `count` processes here."""
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("--backend dask needs Dask: pip install 'onnxprune[dask]'") from None
    try:
        given = {"address": address, "timeout": 20} if address else {"n_workers": count, "threads_per_worker": 1}
        return Client(**given)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"no Dask scheduler answers at {address}: {error}") from None


def _register_ray(address: str | None) -> Callable[[], Any] | None:
    """Let joblib run in the Ray cluster at `address`, or in one here. What ends that; None where this process was in a
    cluster before."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise UsageError("--backend ray needs Ray: pip install 'onnxprune[ray]'") from None
    before = ray.is_initialized()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise RuntimeFailure(f"no Ray cluster answers at {address}: {error}") from None
    register_ray()
    return None if before else ray.shutdown
