"""Files that are no models: written whole or not at all, errors in one line. Knows paths, nothing of models."""

from __future__ import annotations

from onnxprune.files.atomic import check_outputs, created, disk_errors, followed, replacing
from onnxprune.files.folders import check_new_folder, new_folder
from onnxprune.files.script import function_of
from onnxprune.files.texts import (
    check_distinct,
    check_finite,
    check_inputs,
    is_text,
    json_text,
    same_file,
    write_json,
    write_texts,
)

__all__ = [
    "check_distinct", "check_finite", "check_inputs", "check_new_folder", "check_outputs", "created", "disk_errors",
    "followed", "function_of", "is_text", "json_text", "new_folder", "replacing", "same_file", "write_json",
    "write_texts",
]  # fmt: skip
