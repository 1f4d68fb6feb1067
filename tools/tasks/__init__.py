"""Trained models with labelled data and a metric each, for measuring what pruning costs.

    python -m tools.tasks CACHE

measures every dense model; CACHE is the folder that `tools/get_models.py` fills.
"""

from __future__ import annotations

from pathlib import Path

from . import captcha, cifar, crepe, easyocr, fashion, magika, minilm, ppocr, silero, small, speaker
from .base import Task, batches, run

FAMILIES = (fashion, cifar, captcha, ppocr, crepe, easyocr, silero, magika, minilm, speaker, small)

__all__ = ["Task", "batches", "run", "tasks"]


def tasks(cache: Path) -> dict[str, Task]:
    """The tasks whose model and data are there, by name."""
    every = [task for family in FAMILIES for task in family.tasks(Path(cache))]
    return {task.name: task for task in every if not task.missing()}
