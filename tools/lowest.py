"""The lowest versions that pyproject.toml allows, of what is required and of the extras that are named, as constraints
for pip.

    python tools/lowest.py gpu > lowest.txt && pip install -c lowest.txt '.[gpu,test]'
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirements: list[str]) -> Iterator[str]:
    """`name==version` of each requirement that holds on this machine and names a lowest version."""
    for requirement in map(Requirement, requirements):
        floors = [s.version for s in requirement.specifier if s.operator == ">="]
        if floors and (requirement.marker is None or requirement.marker.evaluate()):
            yield f"{requirement.name}=={floors[0]}"


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]
    for line in lowest(sum(extras, project["dependencies"])):
        print(line)
