"""Families of flags about inputs, and about how things are run and timed.

Knows argparse and `Options`, no stage.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onnxprune.cli import arguments as take

MANY: dict[str, Any] = {"nargs": "+", "action": "extend"}
"""How a flag is declared that takes several values and may be given more than once."""
PROVIDERS = "cpu, cuda, tensorrt, openvino, dnnl, xnnpack"


def calibration_flags(parser: argparse.ArgumentParser) -> None:
    """Inputs, and the memory that their activations may take."""
    inputs = parser.add_argument_group("inputs to calibrate on (photographs or made-up ones where none are given)")
    inputs.add_argument(
        "--calib",
        metavar="DATA",
        help="an .npz, a .txt, a folder of .npy, .npz, images or test_data_set_*, or script.py:function (default: "
        "photographs, sentences or made-up inputs)",
    )
    inputs.add_argument(
        "--calib-samples", type=take.option("calib_samples"), metavar="N", help="at most so many samples"
    )
    inputs.add_argument(
        "--calib-batch", type=take.option("calib_batch"), metavar="N", help="samples that are run at once"
    )
    memory_flag(inputs)
    pixel_flags(inputs)
    text_flags(inputs)


def memory_flag(parser: argparse._ActionsContainer) -> None:
    """How much memory a look at activations may take."""
    parser.add_argument(
        "--memory",
        type=take.option("memory"),
        metavar="SIZE",
        help="what the process may take (default 4G, of which activations take no more than two)",
    )


def pixel_flags(parser: argparse._ActionsContainer) -> None:
    """How image files are read."""
    parser.add_argument(
        "--mean",
        type=take.option("mean"),
        metavar="M,..",
        help="of image files: (pixel * scale - mean) / std (default: found out)",
    )
    parser.add_argument("--std", type=take.option("std"), metavar="S,..", help="see --mean (default: found out)")
    parser.add_argument(
        "--scale",
        type=take.option("scale"),
        metavar="X",
        help="see --mean; 1/255 brings pixels into 0..1 (default: found out)",
    )


def text_flags(parser: argparse._ActionsContainer) -> None:
    """How text files are read."""
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="the tokenizer.json that a .txt is read by (default: that beside the model, or in the folder above)",
    )
    parser.add_argument(
        "--text-length",
        type=take.option("text_length"),
        metavar="N",
        help="tokens in a window of a .txt, where the model leaves it open (default 256)",
    )


def finetune_flag(parser: argparse._ActionsContainer) -> None:
    """Whether what is left is trained, and how long."""
    parser.add_argument(
        "--finetune",
        nargs="?",
        const=True,
        type=take.option("finetune"),
        metavar="STEPS|5m",
        help="then train it on the dense model's answers, for so many steps or so long (default: not; 2000 steps "
        "where nothing is said; needs torch)",
    )


def proof_flags(parser: argparse.ArgumentParser) -> None:
    """Where the proof runs, and what it lets pass."""
    proof = parser.add_argument_group("proof")
    provider_flag(proof)
    proof.add_argument(
        "--check-rtol",
        type=take.option("check_rtol"),
        metavar="X",
        help="allowed error, as a share of the output (default 1e-5; more for float16)",
    )
    proof.add_argument(
        "--check-atol", type=take.option("check_atol"), metavar="X", help="allowed absolute error on top of that"
    )


def latency_flag(parser: argparse._ActionsContainer) -> None:
    """How long a run may take, from which the ratio follows."""
    parser.add_argument(
        "--max-latency",
        type=take.option("max_latency"),
        metavar="5ms",
        help="the smallest cut that takes no longer, as measured; a number alone is milliseconds (default: no bound)",
    )


def timing_flags(parser: argparse._ActionsContainer) -> None:
    """How time is measured."""
    parser.add_argument(
        "--threads", type=take.option("threads"), metavar="N", help="inside an operator (default: the runtime's own)"
    )
    parser.add_argument(
        "--batch", type=take.option("batch"), metavar="N", help="samples, where their number is open (default 1)"
    )


def provider_flag(parser: argparse._ActionsContainer) -> None:
    """What ONNX Runtime runs on."""
    parser.add_argument("--providers", metavar="P", **MANY, help=f"{PROVIDERS} or full names (default cpu)")
