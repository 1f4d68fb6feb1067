"""The public API as its users meet it: what is in it, what it says of mistakes, what an editor and mypy know of it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli.commands import prune as prune_command
from onnxprune.options import NUMBERS, OptionKeywords, Options, flag, given, objection
from onnxprune.options.validation import AUTO, CHOICES, RULES
from onnxprune.planning import criteria

ROOT = Path(__file__).parents[1]
TINY = ROOT / "models" / "tiny_conv.onnx"


@pytest.fixture(scope="module")
def result() -> onnxprune.Result:
    return onnxprune.prune(TINY, ratio=0.3, fast=True)


def test_dir_shows_the_api_only() -> None:
    assert dir(onnxprune) == sorted(onnxprune.__all__)
    assert all(getattr(onnxprune, name) is not None for name in onnxprune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        onnxprune.prun  # noqa: B018


def test_keywords_are_the_fields_of_options() -> None:
    given, kept = get_type_hints(OptionKeywords), get_type_hints(Options)
    assert str in get_args(given.pop("criterion"))  # which may be a function, too
    assert kept.pop("criterion") is str
    assert given.pop("round_to") == kept.pop("round_to") | Literal["auto"]  # a number once it is checked
    assert given.pop("memory") == kept.pop("memory") | str  # so, too
    assert given == kept
    assert OptionKeywords.__optional_keys__ == {f.name for f in fields(Options)}


def test_a_result_saves_shows_and_describes_itself(result: onnxprune.Result, tmp_path: Path) -> None:
    path = result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(path, full_check=True)
    assert repr(result).startswith("<onnxprune.Result: parameters 12,538 -> ")
    assert len(repr(result)) < 200
    text = result.summary()
    assert "parameters" in text
    assert "proof:" in text
    table = result._repr_html_()
    assert table.startswith("<table>")
    assert f"{result.report.after.parameters:,}" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": "0.3"}, "ratio='0.3' is not a number"),
        ({"ratio": True}, "ratio=True is not a number"),
        ({"ratio": 1.5}, "ratio=1.5 is not between 0 and 1"),
        ({"scope": "everywhere"}, "scope='everywhere' is not local, global, sensitivity or pq"),
        ({"fast": 1}, "fast=1 is not True or False"),
        ({"calib_samples": 0}, "calib_samples=0 is not at least 1"),
        ({"memory": 1024}, "memory=1024 is not at least 1 MiB"), ({"memory": "1K"}, "memory=1024 is not at least 1 MiB"),
        ({"memory": "8X"}, "memory='8X' is not a whole number; 4G is usual"),
        ({"max_ratio": 0}, "max_ratio=0 is not in"),
        ({"residual": "no"}, "residual='no' is not none, conv or all"),
        ({"round_to": "many"}, "round_to='many' is not a whole number"),
        ({"nodes_to_exclude": "re:["}, "nodes_to_exclude re:[: not a regular expression"),
        ({"op_types_to_exclude": "Convv"}, "op_types_to_exclude Convv: the model has no such operator"),
        ({"op_types_to_exclude": ("Gemm", "G")}, "op_types_to_exclude G: the model has no such operator"),
        ({"nodes_to_exclude": "w"}, "nodes_to_exclude w: no node, parameter or group has such a name"),
        ({"nodes_to_exclude": None}, "nodes_to_exclude=None is not a name or a list of names"),
        ({"nodes_to_exclude": [3]}, "nodes_to_exclude=[3] is not a name or a list of names"),
        ({"op_types_to_exclude": {"Gemm": 1}}, "is not a name or a list of names"),
        ({"providers": 1}, "providers=1 is not a name or a list of names"),
        ({"input_shapes": "image:1,3,8,8"}, "is not names of inputs with their sizes, such as {'image':"),
        ({"input_shapes": {"image": 3}}, "is not names of inputs with their sizes"),
        ({"input_shapes": {"image": [1, 3, 8.5, 8]}}, "is not names of inputs with their sizes"),
        ({"criterion": "l3"}, "no criterion 'l3'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxprune.UsageError, match=message.replace("(", r"\(").replace("[", r"\[")):
        onnxprune.prune(TINY, **options)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="no option 'ratoi'; did you mean 'ratio'"):
        onnxprune.prune(TINY, ratoi=0.3)
    with pytest.raises(TypeError, match=r"no option 'zzz'$"):
        onnxprune.inspect(TINY, zzz=1)


def test_what_is_no_keyword_says_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"'max_drop' is a gate: write validate=data, gates=Gates\(max_drop=...\)"):
        onnxprune.prune(TINY, max_drop=0.01)
    with pytest.raises(TypeError, match=r"not as 0.3: write ratio=0.3"):
        onnxprune.prune(TINY, 0.3)


def test_every_rule_is_of_an_option() -> None:
    names = {f.name for f in (*fields(Options), *fields(onnxprune.Gates))}
    assert {name for name, _, _ in RULES} | CHOICES.keys() | NUMBERS.keys() <= names
    assert given(None, {}) == Options()
    assert flag("calib_samples") == "--calib-samples"
    for name, holds, _ in RULES:
        default = {**vars(Options()), **vars(onnxprune.Gates())}[name]
        assert default is None or holds(default), name


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ratio", 1.5, "1.5"), ("ratio", "x", "x"), ("calib_samples", 0, "0"), ("memory", 1024, "1K"),
        ("mean", ("a",), "a"), ("std", (1.0, 0.0), "1,0"), ("scale", -1.0, "-1"), ("round_to", -3, "-3"),
        ("min_channels", 0, "0"), ("max_ratio", 2.0, "2"), ("seed", -1, "-1"), ("threads", -1, "-1"),
        ("check_rtol", float("nan"), "nan"), ("check_atol", -1.0, "-1"), ("seed", 1.5, "1.5"),
    ],
)  # fmt: skip
def test_a_flag_refuses_in_the_words_of_the_keyword(name: str, value: Any, text: str) -> None:
    words = objection(name, value)
    assert words
    with pytest.raises(onnxprune.UsageError, match=re.escape(f"{name}={value!r} {words}")):
        onnxprune.prune(TINY, **{name: value})
    with pytest.raises(onnxprune.UsageError) as refused:
        prune_command.parser().parse([str(TINY), "out.onnx", f"{flag(name)}={text}"])
    assert f"argument {flag(name)}: {text!r} {words}" in refused.value.message


@pytest.mark.parametrize(
    ("flags", "keywords"),
    [
        ("allow it with --memory 5G, or give --fast", "allow it with memory 5G, or give fast=True"),
        ("not even --ratio 0.016 does", "not even ratio=0.016 does"), ("--scope 'x' is", "scope='x' is"),
        ("leave out --no-heads", "leave out heads=False"), ("made by --save-plan", "made by --save-plan"),
        ("more than --max-drop 0.01", "more than max_drop=0.01"), ("--metric top-1 needs", "metric top-1 needs"),
    ],
)  # fmt: skip
def test_errors_speak_python_in_python_and_flags_on_the_command_line(flags: str, keywords: str) -> None:
    error = onnxprune.UsageError(flags)
    assert (str(error), error.message) == (keywords, flags)


def test_auto_is_a_multiple_in_python_too() -> None:
    assert given(None, {"round_to": "auto"}) == given(None, {"round_to": 0}) == given(Options(round_to=AUTO), {})


def test_memory_may_be_written_as_on_the_command_line() -> None:
    """As the message that says how much is needed does."""
    for text, count in (("2G", 2 << 30), ("64MiB", 64 << 20), (str(1 << 20), 1 << 20)):
        assert given(None, {"memory": text}).memory == count


def test_a_name_alone_is_one_name() -> None:
    """Not its letters."""
    assert given(None, {"nodes_to_exclude": "head"}).nodes_to_exclude == ("head",)
    assert given(None, {"providers": "cpu"}).providers == ("cpu",)


def test_quality_and_gates(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((32, 3, 16, 16)).astype(np.float32)
    labels = np.arange(32) % 10
    done = onnxprune.prune(TINY, fast=True, validate={"image": images, "labels": labels})
    assert done.report.validation is not None
    assert done.report.validation["metric"] == "top-1"
    with pytest.raises(onnxprune.CheckFailed, match="agreement"):
        onnxprune.prune(TINY, fast=True, validate={"image": images}, gates=onnxprune.Gates(min_agreement=1.0))
    with pytest.raises(onnxprune.UsageError, match="`gates` need data"):
        onnxprune.prune(TINY, fast=True, gates=onnxprune.Gates(max_drop=0.1))


def heaviest_last(weight: Any, rng: Any) -> Any:
    return np.abs(weight) ** 3


def last_first(inputs: Any) -> Any:
    return np.arange(inputs.count)[::-1]


def many(one: Any, two: Any, three: Any) -> Any:
    raise AssertionError


def feeds() -> Any:
    for seed in range(3):
        yield {"image": np.random.default_rng(seed).standard_normal((16, 3, 16, 16)).astype(np.float32)}


def first_class(outputs: Any, reference: Any) -> Any:
    return float((np.asarray(outputs[0]).argmax(1) == np.asarray(reference[0]).argmax(1)).mean())


def test_functions_are_criteria_data_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "OWN", {})
    for criterion, calib in ((heaviest_last, None), (last_first, feeds)):
        done = onnxprune.prune(TINY, criterion=criterion, scope="local", calib=calib, reconstruct="none")
        assert done.report.options.criterion == criterion.__name__
        assert done.report.after.parameters < done.report.before.parameters
    done = onnxprune.prune(TINY, fast=True, validate=feeds, metric=first_class)
    assert done.report.validation is not None
    assert done.report.validation["metric"] == "first_class"
    with pytest.raises(onnxprune.UsageError, match=r"takes .* not 3 arguments"):
        onnxprune.prune(TINY, criterion=many)

    def l2(weight: Any, rng: Any) -> Any:
        return weight

    with pytest.raises(onnxprune.UsageError, match="there is a criterion 'l2' already"):
        onnxprune.prune(TINY, criterion=l2)
    made = []
    for sign in (1, -1):  # defined again, as in a notebook

        def mine(weight: Any, rng: Any, sign: Any = sign) -> Any:
            return sign * np.abs(weight)

        mine.__signature__ = signature(heaviest_last)
        made.append(onnxprune.plan(TINY, criterion=mine, fast=True).groups)
    assert made[0] != made[1]


def test_graphsurgeon_in_and_out(result: onnxprune.Result) -> None:
    import onnx_graphsurgeon as gs

    graph = result.model.to_graphsurgeon()
    assert isinstance(graph, gs.Graph)
    again = onnxprune.prune(graph, ratio=0.3, fast=True)
    assert again.report.before.parameters == result.report.after.parameters
    dense = gs.import_onnx(onnx.load(TINY))
    plan = onnxprune.plan(dense, ratio=0.3, fast=True)
    assert onnxprune.apply(dense, plan).weights.keys() == result.model.weights.keys()
    assert onnxprune.inspect(dense).cost.parameters == result.report.before.parameters
    assert onnxprune.verify(dense, onnxprune.apply(dense, plan).to_graphsurgeon(), plan).refitted == ()
    compared = onnxprune.compare(dense, graph, {"image": np.zeros((4, 3, 16, 16), np.float32)})
    assert compared.after.parameters == result.report.after.parameters


def test_a_plan_may_be_a_path_and_a_model_bytes(result: onnxprune.Result, tmp_path: Path) -> None:
    path, out = result.plan.save(tmp_path / "plan.json"), result.save(tmp_path / "out.onnx")
    dense = TINY.read_bytes()
    for plan in (path, str(path)):
        replayed = onnxprune.prune(dense, fast=True, plan=plan)
        assert replayed.save(tmp_path / "again.onnx").read_bytes() == out.read_bytes()
        onnxprune.verify(bytearray(dense), out.read_bytes(), plan)
        assert onnxprune.apply(dense, plan).size() == result.model.size()
    state = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(TINY).graph.initializer}
    sliced = onnxprune.apply_plan(path, state, TINY)
    assert {n: a.shape for n, a in sliced.items()} == {
        t.name: tuple(t.dims) for t in result.model.to_proto().graph.initializer
    }
    with pytest.raises(onnxprune.UsageError, match="not a dict"):
        onnxprune.verify(TINY, out, {})  # type: ignore[arg-type]
    for data, says in ((b"", "is empty"), (dense[:-99], "is truncated"), (b"no model", "is a text file")):
        with pytest.raises(onnxprune.UsageError, match=f"^the model {says}"):
            onnxprune.inspect(data)


def test_reports_and_plans_go_to_files_and_come_back(result: onnxprune.Result, tmp_path: Path) -> None:
    assert result.report.save(tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert '"kind": "report"' in result.report.save(tmp_path / "report.json").read_text("utf-8")
    plan = onnxprune.Plan.load(result.plan.save(tmp_path / "plan.json"))
    assert plan == result.plan
    with pytest.raises(onnxprune.UsageError, match="a plan is a file"):
        onnxprune.Plan.load(tmp_path / "nothing.json")


CONSUMER = """
from pathlib import Path
import onnxprune
result: onnxprune.Result = onnxprune.prune("model.onnx", ratio=0.3, scope="local")
path: Path = result.save("out.onnx")
plan: onnxprune.Plan = onnxprune.plan("model.onnx", fast=True)
try:
    onnxprune.verify("model.onnx", "out.onnx", plan)
except onnxprune.CheckFailed as error:
    text: str = error.message
"""


@pytest.mark.slow
def test_what_mypy_knows_of_the_package(tmp_path: Path) -> None:
    """py.typed: right use passes in strict mode; a mistyped keyword, a wrong type and a wrong word do not."""
    pytest.importorskip("mypy")
    lines = ["onnxprune.prune('model.onnx', ratoi=0.3)", "onnxprune.prune('model.onnx', ratio='a third')",
             "onnxprune.plan('model.onnx', scope='everywhere')", "result.sav('out.onnx')"]  # fmt: skip
    (tmp_path / "right.py").write_text(CONSUMER)
    (tmp_path / "wrong.py").write_text(CONSUMER + "\n".join(lines))
    for name, wrong in (("right.py", 0), ("wrong.py", len(lines))):
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path), name],
            cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        errors = [line for line in done.stdout.splitlines() if line.startswith(name) and ": error:" in line]
        assert len(errors) == wrong, done.stdout
