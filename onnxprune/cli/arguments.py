"""How single arguments of the command line are read: types that say in one line what they want, and the parser.

Knows argparse and TOML, no model.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from collections.abc import Callable, Container, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from onnxprune import __version__
from onnxprune.errors import UsageError
from onnxprune.validation import NUMBERS, WORDS, near, objection


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a UsageError of one line, and that takes a file of flags."""

    def error(self, message: str) -> NoReturn:
        """UsageError that says where the help is, and of a flag that there is not what is nearest to it."""
        what, _, words = message.partition(": ")
        wrong = next((w.partition("=")[0] for w in words.split() if w.startswith("--")), "")
        meant = near(wrong, self._option_string_actions) if what == "unrecognized arguments" and wrong else ""
        raise UsageError(f"{message}{meant} (see {self.prog} --help)")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, and for what they leave out those of the file that --config names."""
        given = list(argv)
        files = [k for k, word in enumerate(given) if word.partition("=")[0] == "--config"]
        if not files:
            return self.parse_args(given)
        at = files[-1]
        if given[at:] == ["--config"]:
            return self.parse_args(given)  # says what is missing
        name = given[at].partition("=")[2] or next(iter(given[at + 1 : at + 2]), "")
        said = {action.dest for word in given if (action := self._option_string_actions.get(word.partition("=")[0]))}
        return self.parse_args([*given, *self._configured(Path(name), said)])

    def _configured(self, path: Path, said: Container[str]) -> Iterator[str]:
        """The file's entries as arguments, but for those whose flag is given."""
        for key, value in read_toml(path).items():
            flag = f"--{key.replace('_', '-')}"
            action = self._option_string_actions.get(flag)
            if action is None or action.dest in ("config", "help", "version"):
                raise UsageError(f"{path}: there is no flag {flag}{near(flag, self._option_string_actions)}")
            if action.dest not in said:
                yield from self._words(path, key, value, action)

    def _words(self, path: Path, key: str, value: Any, action: argparse.Action) -> Iterator[str]:
        """One entry of the file at `path` as the words that stand for it on the command line."""
        flag, several = f"--{key.replace('_', '-')}", isinstance(value, list | dict) and action.nargs == "+"
        if isinstance(value, bool):
            off = f"--no-{flag[2:]}"
            if action.nargs not in (0, "?"):
                raise UsageError(f"{path}: {key} takes a value, not {str(value).lower()}")
            if value or off in self._option_string_actions:
                yield flag if value else off
        elif several:
            words = [f"{name}={x}" for name, x in value.items()] if isinstance(value, dict) else map(str, value)
            yield from (flag, *words) if value else ()
        elif isinstance(value, list | dict) or action.nargs == 0:
            raise UsageError(f"{path}: {key} takes {'true or false' if action.nargs == 0 else 'one value'}")
        else:
            yield f"{flag}={value}"


def read_toml(path: Path) -> dict[str, Any]:
    """What a file of flags holds; UsageError where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; --config takes a TOML file of flags") from None
    except OSError as error:
        raise UsageError(f"{path or '--config'}: {error.strerror}; --config takes a TOML file of flags") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None


def parser(prog: str, description: str, epilog: str | None = None) -> Parser:
    """A parser with what all commands take; flags that are not given leave no trace."""
    made = Parser(
        prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--verbose", action="store_true", default=False, help="print everything, and tracebacks")
    made.add_argument("--config", metavar="TOML", default=None, help="a file of flags (ratio = 0.3); given ones win")
    made.add_argument("-v", "--version", action="version", version=f"onnxprune {__version__}")
    return made


def number(kind: Callable[[str], float], wanted: str, fits: Callable[[float], bool]) -> Callable[[str], Any]:
    """A type of arguments: numbers of a `kind` that `fits`; of others it says what is `wanted`."""

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
    """A scope by the names that --allocation gives to it."""
    names = {"uniform": "local", "local": "local", "global": "global", "sensitivity": "sensitivity", "pq": "pq"}
    if text not in names:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of uniform, global, sensitivity, pq")
    return names[text]


def option(name: str) -> Callable[[str], Any]:
    """A type of arguments: values of the option `name`, refused in the words that it has in Python, too."""
    read = READERS.get(name) or NUMBERS[name]

    def convert(text: str) -> Any:
        try:
            value = read(text)
            wrong = objection(name, value)
        except ValueError:
            wrong = WORDS[name] if name in READERS else objection(name, text)
        if wrong:
            raise argparse.ArgumentTypeError(f"{text!r} {wrong}")
        return value

    return convert


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    return tuple(map(_fraction, text.split(",")))


def _named_share(text: str) -> dict[str, float]:
    """NAME=SHARE, where the name may have a = of its own."""
    name, _, share = text.rpartition("=")
    return {name: float(share)}


def _fraction(text: str) -> float:
    """A number, or one over another, such as 1/255."""
    try:
        return float(Fraction(text.strip()))
    except (ZeroDivisionError, OverflowError):
        raise ValueError(text) from None


def _bytes(text: str) -> int:
    """Bytes, with K, M or G for powers of 1024."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    factor = units.get(text[-1:].upper(), 1)
    return int(text[:-1] if text[-1:].upper() in units else text) * factor


READERS: dict[str, Callable[[str], Any]] = {
    "mean": _numbers,
    "std": _numbers,
    "scale": _fraction,
    "memory": _bytes,
    "round_to": lambda text: 0 if text == "auto" else int(text),
    "finetune": str,
    "ratio_of": _named_share,
}
"""How options are read that are more than a number; ValueError where a text is nothing of the kind."""
count = number(int, "a whole number from 1 on", lambda value: value >= 1)


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME:SIZES, the name and shape of an input."""
    name, _, sizes = text.rpartition(":")
    parts = sizes.split(",")
    given = [part.strip() for part in parts]
    if not name or not all(part.isdigit() or part == "-1" for part in given):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME:SIZES, such as image:1,3,224,224; 0 or -1 leaves a dimension open"
        )
    return name, tuple(map(int, given))
