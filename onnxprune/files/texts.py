"""Files of the command line that are no models: where may be written, plans and reports. Knows paths, no stage."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError


def is_text(data: Any) -> bool:
    """Whether data, as --calib takes it, is the path of a plain text."""
    return isinstance(data, str | os.PathLike) and str(data).lower().endswith(".txt")


def same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Do both paths name one file, through links or not? A file that does not exist yet is compared by its path."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def check_inputs(inputs: Iterable[Path]) -> None:
    """UsageError where a file to read does not exist. What else may be wrong with it is said when it is read."""
    for path in inputs:
        try:
            path.stat()
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist; check the path") from None
        except OSError:
            continue


def check_finite(path: Path) -> None:
    """UsageError for a device, which may never end (/dev/zero); a pipe is read as a file is."""
    with suppress(OSError):  # said by whoever opens it
        kind = path.stat().st_mode
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            raise UsageError(f"{path} is a device; give a file")


def check_distinct(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Refuses to write over what is read, or twice to one file (UsageError)."""
    for i, path in enumerate(outputs):
        if any(same_file(path, other) for other in inputs):
            raise UsageError(f"{path} would be both read and written; give another name to write to")
        if any(same_file(path, other) for other in outputs[:i]):
            raise UsageError(f"{path} would be written twice; give every output its own name")


def json_text(value: dict[str, Any]) -> str:
    """How plans and reports are written: indented by two, with a line end."""
    return json.dumps(value, indent=2) + "\n"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write it as `json_text`, whole or not at all."""
    write_texts({path: json_text(value)})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write several files (UTF-8), all of them or none."""
    from onnxprune.files.atomic import created, disk_errors, replacing

    for path in list(texts)[:1]:
        with disk_errors(path), replacing(list(texts)) as files:
            for output, text in texts.items():
                with created(files.temporary[output]) as write:
                    write(text.encode())
