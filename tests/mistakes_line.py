"""Mistakes on the command line: words, files, folders, numbers, data, plans, and flags that do not go together.

`make` writes the files that the commands name into the folder where they run; see test_mistakes.py."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from PIL import Image
from safetensors.numpy import save_file

import onnxprune

SCRIPT = """
def raises():
    raise ValueError("no data")
def nothing():
    pass
def number():
    return 3
def numbers():
    yield 3
def misnamed():
    yield {"picture": 0}
def words(outputs, labels):
    return "good"
def breaks(outputs, labels):
    raise KeyError("top")
"""


def make(folder: Path, tiny: ModelProto) -> None:
    """m.onnx, what is pruned of it, data that fits it; and files that are wrong for what they are given for."""
    random = np.random.default_rng(0)
    whole = tiny.SerializeToString()
    onnx.save(tiny, folder / "m.onnx")
    onnxprune.prune(tiny, fast=True).save(folder / "small.onnx")
    onnxprune.plan(tiny, fast=True).save(folder / "p.json")
    _other(folder)
    _broken_models(folder, tiny, whole)
    images = random.standard_normal((20, 3, 8, 8), np.float32)
    np.savez(folder / "d.npz", image=images, labels=np.arange(20) % 5)
    np.savez(folder / "unlabelled.npz", image=images)
    np.savez(folder / "wrong.npz", image=images[:, :2])
    np.savez(folder / "nan.npz", image=np.full((4, 3, 8, 8), np.nan, np.float32))
    np.savez(folder / "words.npz", image=np.full((4, 3, 8, 8), "a"))
    np.savez(folder / "none.npz", image=images[:0], labels=np.arange(0))
    np.savez(folder / "short.npz", image=images, labels=np.arange(7) % 5)
    np.savez(folder / "empty.npz")
    (folder / "text.npz").write_text("image: 1 2 3\n")
    (folder / "cut.npz").write_bytes((folder / "d.npz").read_bytes()[:500])
    np.save(folder / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    for name in ("empty", "pictures", "readme", "readonly"):
        (folder / name).mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "pictures" / "a.png")
    (folder / "pictures" / "b.png").write_bytes(b"no picture")
    (folder / "readme" / "README").write_text("no data\n")
    (folder / "script.py").write_text(SCRIPT)
    for name in ("secret.onnx", "secret.json", "secret.npz", "secret.toml"):
        (folder / name).write_bytes(b"1")
        (folder / name).chmod(0)
    (folder / "readonly").chmod(0o555)
    (folder / "broken.py").write_text("def batches(:\n")
    (folder / "empty.json").write_text("{}")
    (folder / "list.json").write_text("[]")
    (folder / "cut.json").write_text((folder / "p.json").read_text()[:100])
    (folder / "binary.json").write_bytes(bytes(range(128, 256)))
    for name, text in TOML.items():
        (folder / f"{name}.toml").write_text(text)
    (folder / "binary.toml").write_bytes(bytes(range(128, 256)))
    weights = {t.name: onnx.numpy_helper.to_array(t).copy() for t in tiny.graph.initializer}
    save_file(weights, folder / "w.safetensors")
    save_file({"a": np.zeros(3, np.float32)}, folder / "other.safetensors")
    (folder / "text.safetensors").write_text("weights")


TOML = {
    "unknown": "ratoi = 0.3", "broken": "ratio = ", "percent": "ratio = 30", "word": 'scope = "globl"',
    "switch": "ratio = true", "list": "ratio = [0.3]", "number": "fast = 3", "table": "[ratio]\nx = 1",
}  # fmt: skip


def _other(folder: Path) -> None:
    """Another model and a plan of it."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 3] y) { a = MatMul(x, wa) b = Relu(a) y = MatMul(b, wb) }"""
    model = onnx.parser.parse_model(text)
    for name, shape in {"wa": (4, 16), "wb": (16, 3)}.items():
        values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / "other.onnx")
    onnxprune.plan(model, fast=True).save(folder / "other.json")


def _broken_models(folder: Path, tiny: ModelProto, whole: bytes) -> None:
    (folder / "empty.onnx").touch()
    (folder / "-dash.onnx").touch()
    (folder / "text.onnx").write_text("This is a text, not a model.\n" * 40)
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "zeros.onnx").write_bytes(bytes(4096))
    (folder / "binary.onnx").write_bytes(np.random.default_rng(2).bytes(4096))
    (folder / "zip.onnx").write_bytes(b"PK\x03\x04" + struct.pack("<20x"))
    (folder / "picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    (folder / "folder.onnx").mkdir()
    (folder / "loop.onnx").symlink_to("loop.onnx")
    (folder / "dangling.onnx").symlink_to("nowhere.onnx")
    (folder / "full.onnx").symlink_to("/dev/full")
    os.mkfifo(folder / "pipe.onnx")
    for name, damage in {"gone": None, "cutdata": 100}.items():
        model = onnx.ModelProto.FromString(whole)
        onnx.save(model, folder / f"{name}.onnx", save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        if damage is None:
            (folder / f"{name}.data").unlink()
        else:
            (folder / f"{name}.data").write_bytes(bytes(damage))
    model = onnx.ModelProto.FromString(whole)
    del model.graph.node[1]
    onnx.save(model, folder / "unwired.onnx")
    model = onnx.ModelProto.FromString(whole)
    model.graph.node[1].op_type = "Rleu"
    onnx.save(model, folder / "misspelt.onnx")
    model = onnx.ModelProto.FromString(whole)
    model.opset_import[0].version = 99
    onnx.save(model, folder / "future.onnx")
    model = onnx.ModelProto.FromString(whole)
    del model.graph.initializer[:]
    onnx.save(model, folder / "weightless.onnx")


F = "m.onnx out.onnx --fast"
ROWS: dict[str, list[tuple[str, str, int, str]]] = {
    "words": [
        ("nothing at all", "", 2, "IN, OUT"),
        ("OUT forgotten", "m.onnx", 2, "required: OUT"),
        ("a file too many", "m.onnx out.onnx more.onnx", 2, "'more.onnx' is one too many"),
        ("the ratio as a file", "m.onnx out.onnx 0.3", 2, "did you mean --ratio 0.3?"),
        ("the ratio as OUT", "m.onnx 0.3", 2, "did you mean --ratio 0.3?"),
        ("a mistyped command", "inspct m.onnx", 2, "did you mean 'inspect'?"),
        ("a mistyped command with a file too many", "verfy m.onnx small.onnx p.json", 2, "did you mean 'verify'?"),
        ("a command behind the files", "m.onnx out.onnx inspect", 2, "'inspect' is one too many"),
        ("a mistyped flag", f"{F} --raito 0.3", 2, "did you mean '--ratio'?"),
        ("a mistyped flag with =", f"{F} --raito=0.3", 2, "did you mean '--ratio'?"),
        ("one dash", f"{F} -ratio 0.3", 2, "did you mean '--ratio'?"),
        ("a long dash", f"{F} \u2013ratio 0.3", 2, "did you mean '--ratio'?"),
        ("no dash", f"{F} ratio=0.3", 2, "did you mean --ratio=0.3?"),
        ("no dash and no sign", "m.onnx out.onnx ratio 0.3", 2, "did you mean --ratio?"),
        ("underscores", f"{F} --max_ratio 0.5", 2, "did you mean '--max-ratio'?"),
        ("capitals", f"{F} --Ratio 0.5", 2, "did you mean '--ratio'?"),
        ("a flag of other commands", f"{F} --checkpoint x", 2, "but finetune has one"),
        ("a flag that is nothing like one", f"{F} --zzz", 2, "there is no flag --zzz"),
        ("a short flag that there is not", f"{F} -r 0.3", 2, "there is no flag -r"),
        ("a value for a switch", f"{F} --benchmark=yes", 2, "--benchmark takes no value"),
        ("a file that looks like a flag", "-dash.onnx out.onnx", 2, "there is no flag -dash.onnx; for the file of that name write ./-dash.onnx"),
        ("IN of a variable that is not set", "'' out.onnx", 2, "the word in the first place is empty"),
        ("a value of such a variable", "m.onnx out.onnx --calib ''", 2, "the word behind --calib is empty"),
        ("one that is joined", "m.onnx out.onnx --report=", 2, "the word behind --report is empty"),
        ("no value", "m.onnx out.onnx --ratio", 2, "--ratio: expected one argument"),
        ("no value before a flag", "m.onnx out.onnx --ratio --fast", 2, "--ratio: expected one argument"),
        ("no values", "m.onnx out.onnx --nodes-to-exclude", 2, "--nodes-to-exclude: expected at least one argument"),
        ("twice", f"{F} --ratio 0.3 --ratio 0.5", 2, "--ratio is given twice, as 0.3 and as 0.5"),
        ("two names of one flag", f"{F} --scope local --allocation uniform", 2, "--scope and --allocation decide the same"),
        ("yes and no", f"{F} --heads --no-heads", 2, "--heads and --no-heads decide the same"),
        ("files behind several values", "--providers cpu m.onx out.onnx", 2, "-- before them, as --providers takes"),
        ("OUT behind several values", "m.onnx --providers cpu cuda", 2, "-- before them, as --providers takes"),
        ("pixels with spaces", "m.onnx out.onnx --mean 0.5 0.5 0.5", 2, "--mean takes one value, and has '0.5'"),
        ("a topic that there is not", "help concept", 2, "did you mean 'concepts'?"),
        ("a shell that there is not", "--print-completion csh", 2, "'csh' is not bash, zsh or fish"),
        ("a flag of a command that only prints", "help concepts --config x.toml", 2, "there is no flag --config"),
    ],
    "choices": [
        ("criterion", f"{F} --criterion obss", 2, "did you mean 'obs'?"),
        ("criterion of nothing like it", f"{F} --criterion magic", 2, "choose one of activation"),
        ("scope", f"{F} --scope globl", 2, "did you mean 'global'?"),
        ("allocation", f"{F} --allocation unifrom", 2, "'unifrom' is not uniform, local, global, sensitivity or pq; did you mean 'uniform'?"),
        ("of", f"{F} --of mac", 2, "did you mean 'macs'?"),
        ("effort", f"{F} --effort hihg", 2, "did you mean 'high'?"),
        ("reconstruct", f"{F} --reconstruct fodl", 2, "did you mean 'fold'?"),
        ("provider", f"{F} --providers cudaa", 2, "did you mean 'cuda'?"),
        ("provider of nothing like it", f"{F} --providers gpu", 2, "take cpu, cuda, tensorrt"),
        ("a provider that this runtime has not", f"{F} --providers CoreMLExecutionProvider", 4, "CoreMLExecutionProvider is not in the installed ONNX Runtime"),
        ("metric", f"{F} --validate d.npz --metric top1", 2, "did you mean 'top-1'?"),
        ("backend", "sweep m.onnx s --backend dusk", 2, "did you mean 'dask'?"),
        ("criteria", "sweep m.onnx s --criteria l2 obss", 2, "did you mean 'obs'?"),
    ],
    "numbers": [
        ("ratio in per cent", "m.onnx out.onnx --ratio 30", 2, "did you mean 0.3?"),
        ("ratio with a sign for per cent", "m.onnx out.onnx --ratio 30%", 2, "did you mean 0.3?"),
        ("ratio with a comma", "m.onnx out.onnx --ratio 0,3", 2, "did you mean 0.3?"),
        ("ratio of everything", "m.onnx out.onnx --ratio 1", 2, "'1' is not between 0 and 1"),
        ("ratio of nothing", "m.onnx out.onnx --ratio 0", 2, "'0' is not between 0 and 1"),
        ("ratio below nothing", "m.onnx out.onnx --ratio -0.3", 2, "'-0.3' is not between 0 and 1"),
        ("ratio that is no number", "m.onnx out.onnx --ratio nan", 2, "'nan' is not between 0 and 1"),
        ("ratio as a word", "m.onnx out.onnx --ratio half", 2, "such as 0.3"),
        ("ratios with commas", "sweep m.onnx s --ratios 0.2,0.4", 2, "write 0.2 0.4, with spaces"),
        ("ratios in per cent", "sweep m.onnx s --ratios 20 40", 2, "did you mean 0.2?"),
        ("max-ratio in per cent", "m.onnx out.onnx --max-ratio 50", 2, "did you mean 0.5?"),
        ("agreement in per cent", f"{F} --validate d.npz --min-agreement 99", 2, "did you mean 0.99?"),
        ("min-channels of none", "m.onnx out.onnx --min-channels 0", 2, "is not at least 1"),
        ("a broken number", "m.onnx out.onnx --min-channels 2.5", 2, "whole number"),
        ("round-to", "m.onnx out.onnx --round-to -8", 2, "auto"),
        ("samples", "m.onnx out.onnx --calib-samples 0", 2, "is not at least 1"),
        ("memory of a unit that there is not", "m.onnx out.onnx --memory 8X", 2, "4G"),
        ("memory of a byte", "m.onnx out.onnx --memory 1", 2, "at least 1 MiB"),
        ("std of nothing", "m.onnx out.onnx --std 0", 2, "above 0"),
        ("scale by nothing", "m.onnx out.onnx --scale 1/0", 2, "1/255"),
        ("threads", "m.onnx out.onnx --benchmark --threads -1", 2, "from 0 on"),
        ("a time of nothing", "m.onnx out.onnx --max-latency 0", 2, "write 5ms, 0.8ms or 2s"),
        ("a time below nothing", "m.onnx out.onnx --max-latency -1ms", 2, "is not a time above 0"),
        ("a time in another unit", "m.onnx out.onnx --max-latency 5min", 2, "'5min' is not a time above 0"),
        ("a time with a comma", "m.onnx out.onnx --max-latency 0,8ms", 2, "is not a time above 0"),
        ("a time as a word", "m.onnx out.onnx --max-latency fast", 2, "is not a time above 0"),
        ("seed", "m.onnx out.onnx --seed -1", 2, "from 0 on"),
        ("tolerance", f"{F} --check-rtol -1e-5", 2, "from 0 on"),
        ("training", "m.onnx out.onnx --finetune 5x", 2, "90s, 5m or 1h"),
        ("jobs", "sweep m.onnx s --jobs 0", 2, "from 1 on"),
        ("a shape without a name", f"{F} --overwrite-input-shape 1,3,8,8", 2, "NAME:SIZES"),
        ("a shape of words", f"{F} --overwrite-input-shape image:1,3,h,w", 2, "NAME:SIZES"),
        ("a shape of another input", f"{F} --overwrite-input-shape picture:1,3,8,8", 2, "image"),
        ("a shape of too few sizes", f"{F} --overwrite-input-shape image:1,3", 2, "give 4 sizes"),
        ("a shape of other channels", f"{F} --overwrite-input-shape image:1,4,8,8", 2, "3, not 4"),
    ],
    "where to write": [
        ("OUT is IN", "m.onnx m.onnx", 2, "both read and written"),
        ("OUT is IN by another name", "m.onnx ./empty/../m.onnx", 2, "both read and written"),
        ("OUT in a folder that there is not", "m.onnx no/out.onnx", 2, "does not exist; create it first"),
        ("OUT is a folder", "m.onnx empty", 2, "is a folder"),
        ("OUT is the folder", "m.onnx .", 2, "is a folder"),
        ("OUT is nothing", "m.onnx ''", 2, "the word behind m.onnx is empty; is a variable of your script not set?"),
        ("OUT below a file", "m.onnx p.json/out.onnx", 2, "does not exist"),
        ("OUT is a device", "m.onnx /dev/full", 2, "not a regular file"),
        ("OUT leads to a device", "m.onnx full.onnx", 2, "not a regular file"),
        ("OUT is a pipe", "m.onnx pipe.onnx", 2, "not a regular file"),
        ("OUT where nothing can be written", "m.onnx /proc/out.onnx", 2, "not writable"),
        ("OUT has a name too long", f"m.onnx {'n' * 300}.onnx", 2, "too long; give another path"),
        ("report of another kind", f"{F} --report x.pdf", 2, ".html or .json"),
        ("report of no kind", f"{F} --report report", 2, ".html or .json"),
        ("report is OUT", f"{F} --report out.onnx", 2, "written twice"),
        ("report is IN", f"{F} --report m.onnx", 2, "both read and written"),
        ("report is the plan", f"{F} --report x.json --save-plan x.json", 2, "written twice"),
        ("report in a folder that there is not", f"{F} --report no/r.html", 2, "does not exist; create it first"),
        ("report is a folder", f"{F} --report empty", 2, "is a folder"),
        ("plan over the plan that is read", "m.onnx out.onnx --plan p.json --save-plan p.json", 2, "both read and written"),
        ("plan over the data", f"{F} --validate d.npz --save-plan d.npz", 2, "both read and written"),
        ("graph of another kind", "inspect m.onnx --graph g.png", 2, ".dot, .json or .html"),
        ("a sweep into a file", "sweep m.onnx p.json", 2, "writes into a folder"),
        ("a sweep below what there is not", "sweep m.onnx no/s", 2, "does not exist"),
        ("a sweep's report of another kind", "sweep m.onnx s --report s.csv", 2, ".html or .json"),
        ("compare's report of another kind", "compare m.onnx small.onnx --report c.txt", 2, ".html or .json"),
        ("compare's report over a model", "compare m.onnx small.onnx --report small.onnx", 2, "both read and written"),
        ("fine-tuned over the pruned one", "finetune m.onnx small.onnx small.onnx", 2, "both read and written"),
        ("a state dict of another kind", "apply-plan p.json w.safetensors x.bin", 2, ".safetensors"),
    ],
    "models": [
        ("IN does not exist", "no.onnx out.onnx", 2, "no.onnx does not exist"),
        ("IN is a folder", "folder.onnx out.onnx", 2, "folder"),
        ("IN is empty", "empty.onnx out.onnx", 2, "empty.onnx"),
        ("IN is text", "text.onnx out.onnx", 2, "text.onnx"),
        ("IN is cut off", "cut.onnx out.onnx", 2, "cut.onnx"),
        ("IN is zeros", "zeros.onnx out.onnx", 2, "zeros.onnx"),
        ("IN is anything", "binary.onnx out.onnx", 2, "binary.onnx"),
        ("IN is an archive", "zip.onnx out.onnx", 2, "zip.onnx"),
        ("IN is a picture", "picture.onnx out.onnx", 2, "picture.onnx"),
        ("IN is data", "d.npz out.onnx", 2, "d.npz"),
        ("IN is a state dict", "w.safetensors out.onnx", 2, "w.safetensors"),
        ("IN is a plan", "p.json out.onnx", 2, "p.json"),
        ("IN turns in a circle", "loop.onnx out.onnx", 2, "loop.onnx"),
        ("IN leads nowhere", "dangling.onnx out.onnx", 2, "dangling.onnx"),
        ("IN is nothing", "/dev/null out.onnx", 2, "/dev/null is a device"),
        ("IN never ends", "/dev/zero out.onnx", 2, "/dev/zero is a device"),
        ("inspect of what never ends", "inspect /dev/zero", 2, "/dev/zero is a device"),
        ("the weights of IN are gone", "gone.onnx out.onnx", 2, "gone.data"),
        ("the weights of IN are cut off", "cutdata.onnx out.onnx", 2, "cutdata.data"),
        ("a node of IN is gone", "unwired.onnx out.onnx", 4, "Node input 'b' is not a graph input"),
        ("an operator that there is not", "misspelt.onnx out.onnx --fast", 3, "onnxprune inspect"),
        ("an opset to come", "future.onnx out.onnx --fast", 4, "Opset 99 is under development"),
        ("a model without weights", "weightless.onnx out.onnx --fast", 3, "no weights that could be pruned"),
        ("inspect of nothing", "inspect no.onnx", 2, "no.onnx does not exist"),
        ("compare with nothing", "compare m.onnx no.onnx", 2, "no.onnx does not exist"),
        ("compare with another model", "compare m.onnx other.onnx", 2, "inputs"),
        ("verify of nothing", "verify m.onnx no.onnx p.json", 2, "no.onnx does not exist"),
        ("verify of another model", "verify m.onnx other.onnx p.json", 1, "which the pruned model has"),
        ("verify of what was not pruned", "verify m.onnx m.onnx p.json", 1, "conv"),
        ("fine-tuning nothing", "finetune m.onnx no.onnx out.onnx", 2, "no.onnx does not exist"),
    ],
    "data": [
        ("data that does not exist", "m.onnx out.onnx --calib no.npz", 2, "no.npz does not exist"),
        ("data of another shape", "m.onnx out.onnx --calib wrong.npz", 2, "wrong.npz"),
        ("data that never ends", "m.onnx out.onnx --calib /dev/zero", 2, "/dev/zero"),
        ("data that is no number", "m.onnx out.onnx --calib nan.npz", 2, "nan.npz"),
        ("data of words", "m.onnx out.onnx --calib words.npz", 2, "words.npz"),
        ("data of no samples", "m.onnx out.onnx --calib none.npz", 2, "none.npz"),
        ("data without arrays", "m.onnx out.onnx --calib empty.npz", 2, "empty.npz"),
        ("data that is text", "m.onnx out.onnx --calib text.npz", 2, "text.npz"),
        ("data that is cut off", "m.onnx out.onnx --calib cut.npz", 2, "cut.npz"),
        ("data of objects", "m.onnx out.onnx --calib objects.npy", 2, "objects.npy"),
        ("data that is a model", "m.onnx out.onnx --calib m.onnx", 2, "m.onnx"),
        ("an empty folder", "m.onnx out.onnx --calib empty", 2, "nothing to read"),
        ("an array among folders", "m.onnx out.onnx --calib readme", 2, "nothing to read"),
        ("a picture that is none", "m.onnx out.onnx --calib pictures", 2, "b.png"),
        ("a script without a function", "m.onnx out.onnx --calib script.py", 2, "script.py:"),
        ("a function that there is not", "m.onnx out.onnx --calib script.py:batches", 2, "batches"),
        ("a script that there is not", "m.onnx out.onnx --calib no.py:batches", 2, "no.py"),
        ("a script that is none", "m.onnx out.onnx --calib broken.py:batches", 2, "broken.py"),
        ("a function that raises", "m.onnx out.onnx --calib script.py:raises", 2, "no data"),
        ("a function that gives nothing", "m.onnx out.onnx --calib script.py:nothing", 2, "script.py:nothing"),
        ("a function that gives a number", "m.onnx out.onnx --calib script.py:number", 2, "script.py:number"),
        ("a function that gives numbers", "m.onnx out.onnx --calib script.py:numbers", 2, "script.py:numbers"),
        ("a function that gives another input", "m.onnx out.onnx --calib script.py:misnamed", 2, "image"),
        ("no labels for the metric", f"{F} --validate unlabelled.npz --metric top-1", 2, "labels"),
        ("labels of another number", f"{F} --validate short.npz", 2, "labels"),
        ("a metric that gives words", f"{F} --validate d.npz --metric script.py:words", 2, "script.py:words"),
        ("a metric that breaks", f"{F} --validate d.npz --metric script.py:breaks", 2, "script.py:breaks"),
        ("data for compare that does not exist", "compare m.onnx small.onnx --data no.npz", 2, "no.npz does not exist"),
    ],
    "plans and files of flags": [
        ("plan that does not exist", "m.onnx out.onnx --plan no.json", 2, "no.json does not exist"),
        ("plan that is a folder", "m.onnx out.onnx --plan empty", 2, "--save-plan"),
        ("plan that never ends", "m.onnx out.onnx --plan /dev/zero", 2, "/dev/zero is a device"),
        ("plan that is empty", "m.onnx out.onnx --plan empty.json", 2, "not a plan"),
        ("plan that is a list", "m.onnx out.onnx --plan list.json", 2, "not a plan"),
        ("plan that is cut off", "m.onnx out.onnx --plan cut.json", 2, "not a plan"),
        ("plan that is anything", "m.onnx out.onnx --plan binary.json", 2, "not a plan"),
        ("plan that is a model", "m.onnx out.onnx --plan m.onnx", 2, "not a plan"),
        ("plan of another graph", "m.onnx out.onnx --plan other.json --fast", 2, "--force-plan"),
        ("plan of another graph by force", "m.onnx out.onnx --plan other.json --fast --force-plan", 2, "wa"),
        ("verify by a plan of another graph", "verify m.onnx small.onnx other.json", 2, "--force-plan"),
        ("weights that do not exist", "apply-plan p.json no.safetensors x.safetensors", 2, "no.safetensors does not exist"),
        ("weights that are text", "apply-plan p.json text.safetensors x.safetensors", 2, "text.safetensors"),
        ("weights of another model", "apply-plan p.json other.safetensors x.safetensors", 2, "conv"),
        ("config that does not exist", "m.onnx out.onnx --config no.toml", 2, "no.toml does not exist"),
        ("config that is a folder", "m.onnx out.onnx --config empty", 2, "TOML"),
        ("config that never ends", "m.onnx out.onnx --config /dev/zero", 2, "/dev/zero is a device"),
        ("config that is no TOML", "m.onnx out.onnx --config broken.toml", 2, "not TOML"),
        ("config that is anything", "m.onnx out.onnx --config binary.toml", 2, "not TOML"),
        ("config with a mistyped flag", "m.onnx out.onnx --config unknown.toml", 2, "did you mean '--ratio'?"),
        ("config in per cent", "m.onnx out.onnx --config percent.toml", 2, "did you mean 0.3?"),
        ("config with a mistyped word", "m.onnx out.onnx --config word.toml", 2, "did you mean 'global'?"),
        ("config with true for a number", "m.onnx out.onnx --config switch.toml", 2, "ratio takes a value"),
        ("config with a list for a number", "m.onnx out.onnx --config list.toml", 2, "ratio takes one value"),
        ("config with a number for a switch", "m.onnx out.onnx --config number.toml", 2, "true or false"),
        ("config with a table", "m.onnx out.onnx --config table.toml", 2, "ratio takes one value"),
    ],
    "what does not go together": [
        ("a plan and a ratio", "m.onnx out.onnx --plan p.json --ratio 0.3", 2, "leave out --ratio"),
        ("data that nobody reads", f"{F} --calib d.npz", 2, "--calib is not used with --fast"),
        ("a gate without data", f"{F} --max-drop 0.01", 2, "--max-drop needs data"),
        ("a failed model to keep, and no gate", f"{F} --validate d.npz --keep-on-fail", 2, "needs a gate"),
        ("force without a plan", f"{F} --force-plan", 2, "give one with --plan"),
        ("a bound and a ratio", f"{F} --max-latency 5ms --ratio 0.3", 2, "leave out --ratio, or --max-latency"),
        ("a bound and a plan", "m.onnx out.onnx --plan p.json --max-latency 5ms", 2, "leave out --max-latency"),
        ("a bound of time and a budget in units", f"{F} --max-latency 5ms --of units", 2, "leave --of units out"),
        ("a bound in a sweep", "sweep m.onnx s --max-latency 5ms", 2, "there is no flag --max-latency"),
        ("threads of nothing that is timed", f"{F} --threads 2", 2, "add --benchmark"),
        ("threads of a comparison that is not timed", "compare m.onnx small.onnx --threads 2", 2, "add --benchmark"),
        ("pixels that nobody reads", f"{F} --scale 1/255", 2, "--scale is not used"),
        ("a cluster's address without one", "sweep m.onnx s --address tcp://h:1", 2, "--backend dask"),
    ],
    "what this user may not do; root may": [
        ("IN may not be read", "secret.onnx out.onnx", 2, "secret.onnx cannot be read (Permission denied)"),
        ("plan may not be read", "m.onnx out.onnx --plan secret.json", 2, "secret.json: Permission denied"),
        ("data may not be read", "m.onnx out.onnx --calib secret.npz", 2, "secret.npz"),
        ("config may not be read", "m.onnx out.onnx --config secret.toml", 2, "secret.toml: Permission denied"),
        ("OUT where this user may not write", "m.onnx readonly/out.onnx", 2, "readonly is not writable (Permission denied)"),
        ("report where this user may not write", f"{F} --report readonly/r.json", 2, "readonly is not writable"),
        ("a sweep where this user may not write", "sweep m.onnx readonly/s --fast", 2, "readonly is not writable"),
    ],
    "what leaves nothing to do": [
        ("too little to remove", f"{F} --ratio 0.01", 3, "raise it"),
        ("nothing may go", f"{F} --nodes-to-exclude *", 3, "--nodes-to-exclude"),
        ("a bound that nothing holds", f"{F} --max-latency 0.1us", 1, "the least that was reached is"),
        ("a bound that holds already", f"{F} --max-latency 60s", 3, "as it is, within --max-latency 60 s"),
        ("a gate that nothing holds", f"{F} --validate d.npz --min-cosine 1", 1, "not even --ratio"),
        ("a gate that does not hold", f"{F} -q --validate d.npz --ratio 0.6 --min-cosine 0.9999", 1, "out.onnx was not written"),
    ],
}  # fmt: skip
NOT_AS_ROOT = "what this user may not do; root may"
