"""Files of the command line that are no models: where may be written, plans and reports. Knows paths, no stage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from .plan import Plan


def check_distinct(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Refuses to write over what is read, or twice to one file."""
    from .model import same_file

    for i, path in enumerate(outputs):
        if any(same_file(path, other) for other in inputs):
            raise UsageError(f"{path} would be both read and written; give another name to write to")
        if any(same_file(path, other) for other in outputs[:i]):
            raise UsageError(f"{path} would be written twice; give every output its own name")


def read_plan(path: Path) -> Plan:
    """A plan from its file; UsageError, in one line, where it is none."""
    from .plan import Plan

    try:
        return Plan.from_json(json.loads(path.read_text("utf-8"), object_pairs_hook=_once_each))
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; a plan is a file made by --save-plan") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: not a plan, it is no JSON; a plan is a file made by --save-plan") from None


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; where a name stands in it twice a reader would silently drop one of the two."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise UsageError(f"not a plan: '{twice[0]}' stands twice in one object; give every group its own name")
    return dict(pairs)


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
