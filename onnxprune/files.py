"""Files of the command line that are no models: where may be written, plans and reports. Knows paths, no stage."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError


def check_outputs(outputs: Sequence[Path]) -> None:
    """Refuses, before any work, to write where it cannot."""
    for path in outputs:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give the name of a file to write")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first")
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"{path}: the folder {path.parent} is not writable; give another one")


def check_distinct(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Refuses to write over what is read, or twice to one file."""
    from .model import same_file

    for i, path in enumerate(outputs):
        if any(same_file(path, other) for other in inputs):
            raise UsageError(f"{path} would be both read and written; give another name to write to")
        if any(same_file(path, other) for other in outputs[:i]):
            raise UsageError(f"{path} would be written twice; give every output its own name")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; --plan takes a file made by --save-plan") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: not a plan; --plan takes a file made by --save-plan")
    return value


def json_text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_texts({path: json_text(value)})


def write_texts(texts: Mapping[Path, str]) -> None:
    """All of it or nothing."""
    from .atomic import created, disk_errors, replacing

    for path in list(texts)[:1]:
        with disk_errors(path), replacing(list(texts)) as files:
            for output, text in texts.items():
                with created(files.temporary[output]) as write:
                    write(text.encode())
