"""Files take their places together, and a process that ends at any moment leaves whole ones."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.files import replacing
from onnxprune.model import Model, Weight

SERVER = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
SERVER.set_forkserver_preload(["onnxprune.model"])
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and locks")


@pytest.fixture
def models(tiny: ModelProto) -> tuple[Model, Model]:
    old, new = Model.load(tiny), Model.load(tiny)
    new.weights = {n: Weight.of(w.array() * 2) for n, w in old.weights.items()}
    return old, new


def held(path: Path) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer}


def save(source: Path, path: Path, external: bool, call: str, after: int) -> None:
    """Save, but end, as by kill -9, before the n-th call of a function of `os`."""
    inner, count = getattr(os, call), 0

    def stop(*args: object, **kw: object) -> object:
        nonlocal count
        count += 1
        if count > after:
            os._exit(9)
        return inner(*args, **kw)

    setattr(os, call, stop)
    Model.load(source).save(path, external=external)


def ended(*arguments: object) -> bool:
    """Whether `save` was ended, in a process of its own: a fork of this one, which has threads, might wait forever."""
    process = SERVER.Process(target=save, args=arguments)
    process.start()
    process.join()
    assert process.exitcode in (0, 9)
    return process.exitcode == 9


@pytest.mark.parametrize("first", [True, False], ids=["over nothing", "over an old one"])
@pytest.mark.parametrize(
    ("external", "call"), [(e, c) for e in (False, True) for c in ("fsync", "link", "replace", "unlink")]
)
def test_a_kill_at_any_step_leaves_a_whole_pair(
    models: tuple[Model, Model], tmp_path: Path, external: bool, call: str, first: bool
) -> None:
    old, new = models
    whole = {"out.onnx", "out.onnx.data"} if external else {"out.onnx"}
    old.save(tmp_path / "old.onnx", external=False)
    new.save(tmp_path / "new.onnx", external=False)
    both = [held(tmp_path / "old.onnx"), held(tmp_path / "new.onnx")]
    for after in range(20):
        folder = tmp_path / str(after)
        folder.mkdir()
        out = folder / "out.onnx"
        if not first:
            old.save(out, external=external)
        if not ended(tmp_path / "new.onnx", out, external, call, after):
            assert after or call in ("link", "unlink")
            break
        if out.exists() or not first:
            assert held(out) in both
        left = {p.name for p in folder.iterdir()} - whole
        removed = new.save(out, external=external)
        assert {p.name for p in removed} == left
        assert {p.name for p in folder.iterdir()} == whole
        assert held(out) == both[1]
    else:
        pytest.fail("it never came to its end")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("external", "call"), [(e, c) for e in (False, True) for c in ("fsync", "link", "replace", "unlink")]
)
def test_one_ctrl_c_at_any_step_leaves_nothing_else(
    models: tuple[Model, Model], tmp_path: Path, external: bool, call: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = models
    inner, calls, out = getattr(os, call), [0, 0], tmp_path / "out.onnx"  # calls so far, and the one to be met

    def interrupted(*args: object, **kw: object) -> object:
        calls[0] += 1
        if calls[0] == calls[1] and when == "before":
            raise KeyboardInterrupt
        done = inner(*args, **kw)
        if calls[0] == calls[1]:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(os, call, interrupted)
    for at in range(1, 20):
        calls[:] = 0, 0
        old.save(out, external=external)
        before, names = held(out), {p.name for p in tmp_path.iterdir()}
        calls[:] = 0, at
        try:
            new.save(out, external=external)
        except KeyboardInterrupt:
            found = held(out)
            new.save(tmp_path / "new.onnx")
            assert found in (before, held(tmp_path / "new.onnx"))
            (tmp_path / "new.onnx").unlink()
            assert {p.name for p in tmp_path.iterdir()} == names
        else:
            return
    pytest.fail("it never came to its end")


def test_live_runs_keep_their_files(models: tuple[Model, Model], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with replacing([out]) as first:
        assert models[0].save(out) == []
        first.temporary[out].write_bytes(b"the second one")
    assert out.read_bytes() == b"the second one"
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_texts_go_with_the_model(models: tuple[Model, Model], tmp_path: Path) -> None:
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    plan.write_text("old")
    models[0].save(tmp_path / "in.onnx")
    assert ended(tmp_path / "in.onnx", out, False, "replace", 0)
    assert plan.read_text() == "old"
    models[0].save(out, also={plan: "new"})
    assert plan.read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"in.onnx", "out.onnx", "plan.json"}


def test_without_links_copies_are_made(
    models: tuple[Model, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    old, new = models
    out = tmp_path / "out.onnx"
    old.save(out, external=True)
    new.save(out, external=True)
    assert held(out)["head_bias"] == np.asarray(new.weights["head_bias"].array()).tobytes()
    assert {p.name for p in tmp_path.iterdir()} == {"out.onnx", "out.onnx.data"}


@pytest.mark.parametrize("external", [False, True])
def test_a_link_stays_and_what_it_leads_to_is_written(models: tuple[Model, Model], tmp_path: Path, external: bool) -> None:
    old, new = models
    (tmp_path / "versions").mkdir()
    old.save(tmp_path / "versions" / "3.onnx", external=external)
    for name, leads in (("latest.onnx", "versions/3.onnx"), ("new.onnx", "versions/4.onnx"), ("report", "versions/3.html")):
        (tmp_path / name).symlink_to(leads)
    for link in (tmp_path / "latest.onnx", tmp_path / "new.onnx"):
        new.save(link, external=external, also={tmp_path / "report": "a page"})
        assert link.is_symlink()
        assert held(link.resolve()) == {t.name: numpy_helper.to_array(t).tobytes() for t in new.to_proto().graph.initializer}
    assert (tmp_path / "report").is_symlink()
    ends = {"3.onnx", "4.onnx", "3.html"} | ({"3.onnx.data", "4.onnx.data"} if external else set())
    assert {p.name for p in (tmp_path / "versions").iterdir()} == ends
    assert {p.name for p in tmp_path.iterdir()} == {"versions", "latest.onnx", "new.onnx", "report"}


def test_links_that_lead_to_no_file(models: tuple[Model, Model], tmp_path: Path) -> None:
    """/dev/stdout is a link into /proc: had the model taken its place, nobody could print any more."""
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "nowhere.onnx").symlink_to("no/folder.onnx")
    (tmp_path / "folder.onnx").symlink_to(tmp_path)
    before = {p.name: os.readlink(p) for p in tmp_path.iterdir()}
    for name, says in (
        ("loop.onnx", "leads to itself"), ("stdout", "not a regular file"), ("nowhere.onnx", "does not exist"), ("folder.onnx", "is a folder")
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            models[1].save(tmp_path / name)
    assert {p.name: os.readlink(p) for p in tmp_path.iterdir()} == before
