"""onnxprune help [TOPIC]: the guide, which ships in the package. Knows files of the package and what is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files

from onnxprune.cli import arguments
from onnxprune.errors import UsageError
from onnxprune.options import near

TOPICS = {
    "concepts": "unit, group, coupling, frozen, refit, fidelity: each word before it is used",
    "flags": "every flag",
    "data": "what --calib and --validate take",
    "finetune": "what is left learns from the dense model",
    "gates": "metrics, intervals, gates",
    "plans": "replay, edit, verify; back to a training framework",
    "latency": "time as a target",
    "sweeps": "many ways to prune one model",
    "reports": "pages for people, JSON for machines",
    "language-models": "decoders: text, heads, caches, perplexity",
    "large-models": "gigabytes of weights",
    "operators": "those that have rules, and what happens beside the others",
    "pipelines": "exit codes, builds of ONNX Runtime, an action for GitHub, an image for Docker",
    "integrations": "ONNX Runtime's quantiser, folders of Hugging Face, Olive, optimum-cli, notebooks",
    "alternatives": "what other tools do, and which one to take when",
    "how-it-works": "from the file to the proof",
    "figures": "what was measured, and by which command",
}
ABOUT = "Print a part of the guide."


def parser() -> arguments.Parser:
    """The command line of this job."""
    made = arguments.parser("onnxprune help", ABOUT, works=False)
    made.add_argument("TOPIC", nargs="?", default="", help="one of those that `onnxprune help` lists")
    return made


def run(argv: Sequence[str]) -> int:
    """Print the topics, or one of them: as text where the output is no terminal."""
    topic = parser().parse(argv).TOPIC
    if not topic:
        print("\n".join(f"{name:<17}{said}" for name, said in TOPICS.items()))
        return 0
    if topic not in TOPICS:
        meant = near(topic, TOPICS) or f"; choose {', '.join(TOPICS)}"
        raise UsageError(f"no topic '{topic}' in the guide{meant}")
    text = files("onnxprune").joinpath("guide", f"{topic}.md").read_text("utf-8")
    if not sys.stdout.isatty():
        print(text, end="")
        return 0
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))
    return 0
