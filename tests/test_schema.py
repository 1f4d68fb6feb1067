"""The JSON that is written is what the schema in the package says, and the schema notices what is not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import onnxprune
from onnxprune.options import Options
from onnxprune.report import to_json
from onnxprune.results import Verified

SCHEMA = json.loads(files("onnxprune.report").joinpath("schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SMALL = Options(ratio=0.5, calib_samples=16)
ERRORS = {"written": 0.1, "sliced": 0.2}


def through_text(result: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(to_json(result), allow_nan=False))
    return data


@pytest.fixture
def written(tiny_path: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    report = onnxprune.prune(tiny_path, SMALL).report
    compared = onnxprune.compare(tiny_path, tiny_path, samples=8)
    sweep = onnxprune.sweep(tiny_path, tmp_path / "s", [0.3, 0.999], options=replace(SMALL, fast=True), jobs=1)
    return {
        "report": through_text(replace(report, validation=compared.quality)),
        "inspection": through_text(onnxprune.inspect(tiny_path)),
        "sweep": through_text(sweep),
        "compared": through_text(compared),
        "verified": through_text(Verified(**vars(report.proof), refitted=("w",), output_error=ERRORS, inputs="noise")),
    }


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_what_is_written_is_valid_and_every_change_of_a_key_is_not(written: dict[str, dict[str, Any]]) -> None:
    for kind, data in written.items():
        VALIDATOR.validate(data)
        assert data["kind"] == kind
        for key in data:
            less = {k: v for k, v in data.items() if k != key}
            assert not VALIDATOR.is_valid(less), key
            assert not VALIDATOR.is_valid({**less, f"{key}_": data[key]}), key
            assert not VALIDATOR.is_valid({**data, key: object()}), key
        assert not VALIDATOR.is_valid({**data, "schema": 2})


def test_changes_deeper_down_are_noticed(written: dict[str, dict[str, Any]]) -> None:
    places = {
        "report": ("before", "proof", "validation", "reconstruction", ("groups", 0), ("frozen", 0), ("curves", 0)),
        "inspection": ("cost", ("groups", 0)),
        "compared": ("before", "quality"),
        "verified": ("proof", "output_error"),
        "sweep": ("dense", ("points", 0), "fronts"),
    }
    for kind, found in places.items():
        for place in found:
            data = copy.deepcopy(written[kind])
            inner: Any = data
            for step in place if isinstance(place, tuple) else (place,):
                inner = inner[step]
            inner.pop(next(iter(inner)))
            assert not VALIDATOR.is_valid(data), (kind, place)


@pytest.mark.parametrize(
    "more", [{"fast": True}, {"reconstruct": "merge"}, {"reconstruct": "none"}, {"scope": "local"}]
)
def test_reports_of_every_way(more: dict[str, Any], tiny_path: Path) -> None:
    data = through_text(onnxprune.prune(tiny_path, SMALL, **more).report)
    VALIDATOR.validate(data)
    assert bool(data["curves"]) == ("fast" not in more)
