"""Prune the same networks with Torch-Pruning, onnxsim and onnxprune: what is kept, does it run, time and memory.

    python tools/bench_rivals.py CACHE --ratio 0.3 --json rivals.json

Needs torch, torch-pruning, onnxsim and torchvision or timm and transformers; a network or tool that is missing is a
row that says so. Weights are random (BatchNorm statistics and biases too). The ONNX tools read the files that this
script exports into CACHE once. Every measurement is a process of its own, held to one thread; the input shapes and
classifier outputs stay as they are, and so do whole attention heads, which Torch-Pruning keeps. `s` is the pruning
itself: dependency graph and step for Torch-Pruning, its two pruning calls for onnxsim; shapes, trace, plan, rewrite and
cutting every weight for onnxprune. All are CPU seconds; `total` includes loading and proof, but no imports; `process`
is all from its start to the written file, with imports and helper processes (Torch-Pruning builds the network in place
of loading it, and exports what it pruned). RSS is the peak of the process, imports included.

`lm_gqa` and `lm_int4` are the trained decoder of `models/` with fused attention and a cache, in float32 and in 4 bits:
files only, so Torch-Pruning has no row. Both ONNX tools prune their heads, too, onnxprune by `--fast` and, as a row of
its own, calibrated on the text that the model was trained on. Of the weights kept each packed one counts, and the last
column is the perplexity on held-out text.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
LANGUAGE = ("lm_gqa", "lm_int4")
NETWORKS = {  # the name here: (in torchvision, in timm)
    "resnet50": ("resnet50", "resnet50"),
    "densenet121": ("densenet121", "densenet121"),
    "mobilenet_v2": ("mobilenet_v2", "mobilenetv2_100"),
    "shufflenet_v2": ("shufflenet_v2_x1_0", None),
    "efficientnet_b0": ("efficientnet_b0", "efficientnet_b0"),
    "convnext_tiny": ("convnext_tiny", "convnext_tiny"),
    "swin_t": ("swin_t", "swin_tiny_patch4_window7_224"),
    "vit_b_16": ("vit_b_16", "vit_base_patch16_224"),
    "bert_base": (None, None),
    **dict.fromkeys(LANGUAGE, (None, None)),
}
STAGES = ("shapes", "trace", "group", "decide", "rewrite", "cut")
FORMS = {"kept": ".3f", "seconds": ".3f", "total": ".2f", "process": ".2f", "rss": ".0f", "perplexity": ".2f"}
Figures = dict[str, Any]


# ---- in the child process: networks


def network(name: str, tvstub: Path | None) -> tuple[Any, dict[str, Any]]:
    """The module with random weights, and example inputs by name."""
    import torch

    torch.manual_seed(0)
    if tvstub:
        sys.path.insert(0, str(tvstub))
        import tvstub as _  # noqa: F401
    torch.backends.mha.set_fastpath_enabled(False)  # has neither an ONNX form nor a graph that could be traced
    if name == "bert_base":
        from transformers import BertConfig, BertForSequenceClassification

        model: Any = BertForSequenceClassification(BertConfig(attn_implementation="eager", return_dict=False))
        ids = torch.randint(0, 30000, (1, 128))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        model, inputs = vision(name), {"image": torch.randn(1, 3, 224, 224)}
    randomise(model)
    return model.eval(), inputs


def vision(name: str) -> Any:
    in_torchvision, in_timm = NETWORKS[name]
    try:
        import torchvision

        return getattr(torchvision.models, in_torchvision)(weights=None)
    except (ImportError, RuntimeError) as error:  # its compiled part may not fit this torch
        if in_timm is None:
            raise ImportError(f"{name} needs torchvision, which does not import: {error}") from error
        import timm

        return timm.create_model(in_timm, pretrained=False)


def randomise(model: Any) -> None:
    """What starts as ones or zeros (norms, biases, a ViT's head) would be merged by the exporter and hide errors."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)


def export(name: str, path: Path, args: argparse.Namespace) -> None:
    if name in LANGUAGE:
        from tools.lm import rivals

        return rivals.export(name, path)

    model, inputs = network(name, args.tvstub)
    part = path.with_suffix(".part")
    write_onnx(model, inputs, part)
    part.replace(path)


def write_onnx(model: Any, inputs: dict[str, Any], path: Path) -> None:
    import torch

    torch.onnx.export(
        model, tuple(inputs.values()), str(path), input_names=list(inputs), output_names=["logits"], dynamo=False,
        dynamic_axes={key: {0: "N"} for key in (*inputs, "logits")}, opset_version=17,
    )  # fmt: skip


# ---- in the child process: the three tools


def torch_pruning(name: str, args: argparse.Namespace) -> Figures:
    import torch
    import torch_pruning as tp

    begin = time.process_time()
    model, inputs = network(name, args.tvstub)
    wanted = tuple(logits(model(**inputs) if len(inputs) > 1 else model(*inputs.values())).shape)
    count = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    heads = attention_heads(model)
    attentions = [m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs if len(inputs) > 1 else next(iter(inputs.values())),
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=args.ratio,
        ignored_layers=[m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features in (2, 1000)],
        num_heads=heads,
        round_to=max((m.num_heads for m in attentions), default=None),
        output_transform=logits,
    )
    pruner.step()
    seconds = time.process_time() - start
    mend_attributes(model)
    kept = sum(p.numel() for p in model.parameters()) / count
    total, peak = time.process_time() - begin, peak_rss()
    whole: Figures = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_onnx(model, inputs, Path(folder) / "out.onnx")
            whole = {"process": since_start()}
        with torch.no_grad():
            got = tuple(logits(model(**inputs) if len(inputs) > 1 else model(*inputs.values())).shape)
        runs, note = got == wanted, "" if got == wanted else f"output {got} instead of {wanted}"
    except Exception as error:
        runs, note = False, one_line(error)
    return {"kept": kept, "runs": runs, "seconds": seconds, "total": total, "rss": peak, "note": note} | whole


def logits(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def attention_heads(model: Any) -> dict[Any, int]:
    """Torch-Pruning must be told which layers are divided into heads; ONNX files need no such hint."""
    heads = {}
    for module in model.modules():
        kind = type(module).__name__
        if kind == "BertSelfAttention":
            heads |= dict.fromkeys((module.query, module.key, module.value), module.num_attention_heads)
        elif hasattr(module, "qkv") and hasattr(module, "num_heads"):
            heads[module.qkv] = module.num_heads
    return heads


def mend_attributes(model: Any) -> None:
    """The attributes that Torch-Pruning's guide says the user has to mend after a step."""
    if hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if type(module).__name__ == "BertSelfAttention":
            module.all_head_size = module.query.out_features
            module.attention_head_size = module.all_head_size // module.num_attention_heads
        elif hasattr(module, "qkv") and hasattr(module, "head_dim"):
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)


def onnxsim(name: str, args: argparse.Namespace) -> Figures:
    import onnx
    from onnxsim import apply_attention_head_pruning_cpp, apply_structured_pruning_cpp

    source = args.cache / f"{name}.onnx"
    begin = time.process_time()
    model = onnx.load(source)
    start = time.process_time()
    pruned = apply_attention_head_pruning_cpp(apply_structured_pruning_cpp(model, args.ratio), args.ratio)
    seconds = time.process_time() - start
    total, peak = time.process_time() - begin, peak_rss()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        onnx.save(pruned, out)
        figures = {"seconds": seconds, "total": total, "process": since_start(), "rss": peak}
        return figures | written(name, source, out, args)


def calibrated(name: str, args: argparse.Namespace) -> Figures:
    from tools.lm.text import fetch

    return onnxprune(name, args, {"calib": fetch(args.cache / "texts")[0]})


def onnxprune(name: str, args: argparse.Namespace, inputs: Figures | None = None) -> Figures:
    from onnxprune import prune

    source = args.cache / f"{name}.onnx"
    begin = time.process_time()
    marks: list[tuple[str, float]] = []  # when a stage begins, by the same clock as for the others

    def mark(stage: str, share: float = 0.0) -> None:
        if not share:
            marks.append((stage, time.process_time()))

    options: Figures = {} if name in LANGUAGE else {"heads": False, "residual": "all"}
    result = prune(source, ratio=args.ratio, progress=mark, **options, **(inputs or {"fast": True}))
    mark("cut")
    for weight in result.model.weights.values():  # large parameters are cut when they are asked for
        weight.array()
    mark("")
    stages: dict[str, float] = {}
    for (stage, start), (_, end) in pairwise(marks):
        stages[stage] = stages.get(stage, 0.0) + end - start
    total = time.process_time() - begin
    seconds, peak = total if inputs else sum(stages[stage] for stage in STAGES), peak_rss()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        result.model.save(out)
        figures = {"seconds": seconds, "total": total, "stages": stages, "error": result.report.proof.error}
        return figures | {"process": since_start(), "rss": peak} | written(name, source, out, args)


TOOLS: dict[str, Callable[[str, argparse.Namespace], Figures]] = {
    "torch-pruning": torch_pruning,
    "onnxsim": onnxsim,
    "onnxprune": onnxprune,
    "calibrated": calibrated,
}


def tools_for(name: str, asked: list[str]) -> list[str]:
    """Those that a network has rows of."""
    without = "torch-pruning" if name in LANGUAGE else "calibrated"
    return [tool for tool in asked if tool != without]


def written(name: str, source: Path, out: Path, args: argparse.Namespace) -> Figures:
    """What is kept, and whether the file is what the original was; of a language model its perplexity, too."""
    if name in LANGUAGE:
        from tools.lm import rivals

        return rivals.figures(source, out, args.cache / "texts")
    return {"kept": elements(out) / elements(source)} | same_shapes(source, out)


def elements(path: Path) -> int:
    """Floating point elements in the initializers of a file."""
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    graph = onnx.load(path).graph
    return sum(math.prod(t.dims) for t in graph.initializer if t.data_type in floats)


def same_shapes(before: Path, after: Path) -> Figures:
    from written_file import Invalid, check

    try:
        note = check(before, after, None)
    except Invalid as error:
        return {"runs": False, "note": str(error)}
    return {"runs": not note, "note": note}


def since_start() -> float:
    """CPU seconds of this process, and of those that it has started and waited for."""
    return sum(os.times()[:4])


def peak_rss() -> float:
    """MiB at most held by this process since it was started."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def child(args: argparse.Namespace) -> int:
    tool, name, answer = args.child
    try:
        if tool == "export":
            export(name, args.cache / f"{name}.onnx", args)
            figures: Figures = {}
        else:
            figures = TOOLS[tool](name, args)
    except Exception as error:
        if args.verbose:
            raise
        figures = {"runs": False, "note": one_line(error)}
    Path(answer).write_text(json.dumps(figures))
    return 0


# ---- in the parent process


def measure(tool: str, name: str, args: argparse.Namespace) -> Figures:
    """The figures of one child process; of several runs, those of the quickest."""
    every = [spawn(tool, name, args) for _ in range(args.repeat)]
    return min(every, key=lambda figures: figures.get("seconds", math.inf))


def spawn(tool: str, name: str, args: argparse.Namespace) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, __file__, str(args.cache), "--ratio", str(args.ratio), "--child", tool, name]
        command += [str(answer), *(["--tvstub", str(args.tvstub)] if args.tvstub else [])]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            environment = os.environ | threads
            done = subprocess.run(command, env=environment, timeout=args.timeout, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return {"runs": False, "note": f"no answer within {args.timeout:g} s"}
        if answer.exists():
            figures: Figures = json.loads(answer.read_text())
            return figures
        last = done.stderr.strip().splitlines() or [""]
        return {"runs": False, "note": f"the process died (exit code {done.returncode}) {last[-1][:160]}"}


def mean(values: list[float]) -> float | None:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def summary(rows: list[Figures]) -> list[Figures]:
    """Geometric means of each tool, and ours beside it over the networks where that tool works."""
    ours = {r["network"]: r for r in rows if r["tool"] == "onnxprune" and r["runs"]}
    out = []
    for tool in TOOLS:
        works = [r for r in rows if r["tool"] == tool and r["runs"]]
        both = [(r, ours[r["network"]]) for r in works if r["network"] in ours]
        out.append({
            "tool": tool,
            "works": len(works),
            **{key: mean([r[key] for r in works if key in r]) for key in FORMS},
            "onnxprune_kept": mean([own["kept"] for _, own in both]),
            "worst_kept_difference": max((own["kept"] - r["kept"] for r, own in both), default=None),
            "times_faster": mean([r["seconds"] / own["seconds"] for r, own in both]),
            "least_times_faster": min((r["seconds"] / own["seconds"] for r, own in both), default=None),
            "process_times_faster": mean([r["process"] / own["process"] for r, own in both if "process" in r]),
        })  # fmt: skip
    return out


def text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_tables(console: Console, rows: list[Figures], means: list[Figures]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("network", "tool"):
        table.add_column(header)
    for header in ("kept", "runs", "s", "total", "process", "RSS MiB", "perplexity"):
        table.add_column(header, justify="right")
    table.add_column("remark", overflow="fold")
    for r in rows:
        runs = "[green]yes[/]" if r["runs"] else "[red]no[/]"
        numbers = [text(r.get(key), form) for key, form in FORMS.items()]
        table.add_row(r["network"], r["tool"], numbers[0], runs, *numbers[1:], escape(r["note"]))
    console.print(table)
    title = "geometric means over the networks where each works"
    table = Table(box=None, header_style="bold", pad_edge=False, title=title)
    for header in (
        "tool", "works", "kept", "s", "total", "process", "RSS MiB", "perplexity", "ours kept there",
        "worst kept difference",
    ):  # fmt: skip
        table.add_column(header, justify="right" if header != "tool" else "left")
    for header in ("we are times faster (least)", "whole process"):
        table.add_column(header, justify="right")
    for m in means:
        faster = f"{text(m['times_faster'], '.1f')} ({text(m['least_times_faster'], '.1f')})"
        forms = FORMS | {"onnxprune_kept": ".3f", "worst_kept_difference": "+.3f"}
        table.add_row(m["tool"], str(m["works"]), *(text(m[key], form) for key, form in forms.items()), faster,
                      text(m["process_times_faster"], ".1f"))  # fmt: skip
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder of the exported files; made and filled where needed")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="TOOL")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each measurement; the quickest counts (1)")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds for one measurement (600)")
    parser.add_argument("--tvstub", type=Path, metavar="FOLDER", help="imports FOLDER/tvstub.py before torchvision")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.child:
        return child(args)
    args.cache.mkdir(parents=True, exist_ok=True)
    missing = [p for p in ("torch_pruning", "onnxsim", "onnxprune") if importlib.util.find_spec(p) is None]
    if missing:
        print(f"bench_rivals: not installed, so their rows will say so: {', '.join(missing)}", file=sys.stderr)
    rows: list[Figures] = []
    for name in args.networks:
        path = args.cache / f"{name}.onnx"
        exported = {} if path.exists() else spawn("export", name, args)
        for tool in tools_for(name, args.tools):
            if tool == "torch-pruning" or path.exists():
                figures = measure(tool, name, args)
            else:
                figures = {"runs": False, "note": f"not exported: {exported.get('note')}"}
            rows.append({"network": name, "tool": tool, "note": ""} | figures)
            print(f"{name} {tool}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    console, means = Console(), summary(rows)
    console.width = max(console.width, 140)
    print_tables(console, rows, means)
    if args.json:
        args.json.write_text(json.dumps({"ratio": args.ratio, "rows": rows, "means": means}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
