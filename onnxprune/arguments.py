"""How single arguments of the command line are read: types that say in one line what they want, and the parser."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from . import __version__
from .errors import UsageError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parser(prog: str, description: str, epilog: str | None = None) -> Parser:
    made = Parser(
        prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--verbose", action="store_true", default=False, help="print everything, and tracebacks")
    made.add_argument("-v", "--version", action="version", version=f"onnxprune {__version__}")
    return made


def number(kind: Callable[[str], float], wanted: str, fits: Callable[[float], bool]) -> Callable[[str], Any]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return convert


def allocation(text: str) -> str:
    names = {"uniform": "local", "local": "local", "global": "global", "sensitivity": "sensitivity", "pq": "pq"}
    if text not in names:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of uniform, global, sensitivity, pq")
    return names[text]


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas, such as 0.485,0.456,0.406") from None


def size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    factor = units.get(text[-1:].upper(), 1)
    number = text[:-1] if text[-1:].upper() in units else text
    if not number.isdigit() or int(number) * factor < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1M on, such as 4G or 512M")
    return int(number) * factor


share = number(float, "a share between 0 and 1, such as 0.3", lambda value: 0 < value < 1)
limit = number(float, "a share above 0 and up to 1", lambda value: 0 < value <= 1)
count = number(int, "a whole number from 1 on", lambda value: value >= 1)
seed = number(int, "a whole number from 0 on", lambda value: value >= 0)
tolerance = number(float, "a number from 0 on", lambda value: 0 <= value < math.inf)


def multiple(text: str) -> int:
    """0 stands for auto, as in Options."""
    return 0 if text == "auto" else int(count(text))


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition(":")
    parts = sizes.split(",")
    if not name or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:SIZES, such as image:1,3,224,224")
    return name, tuple(map(int, parts))
