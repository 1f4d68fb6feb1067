"""One arena for sessions that are opened one after the other: what one of them is done with, the next one takes.

Each session has an arena of its own otherwise, which doubles as it grows, and had every page given anew. What is held
beyond a run lies elsewhere (`tensors.apart`): no block of an arena goes as long as anything lies in it. Between the
layers of a BERT 879 MB were mapped for it before, and 216 are now; the proof of a ViT-B had 14 GB of pages given anew
without one, and has 3. Knows the runtime, no model.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from onnxprune.run.installed import onnx_runtime

AS_ASKED = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
"""An arena without a limit that grows by what is asked for."""


def share(options: Any, providers: Collection[str]) -> bool:
    """Let the session of these options on these providers (full names) take its memory from there; whether it will."""
    if {*providers} != {"CPUExecutionProvider"} or not _registered():
        return False
    options.add_session_config_entry("session.use_env_allocators", "1")
    return True


@cache
def giving_back() -> Any:
    """Options of a run after which memory that nobody holds goes back to the system."""
    options = onnx_runtime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@cache
def _registered() -> bool:
    """Whether there is such an arena in this process: not where its owner has one for sessions of his own."""
    ort = onnx_runtime()
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(where, ort.OrtArenaCfg(AS_ASKED))
    except Exception:  # ONNX Runtime's exceptions share no base class
        return False
    return True
