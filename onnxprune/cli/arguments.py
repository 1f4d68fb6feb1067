"""How single arguments of the command line are read: types that say in one line what they want, and the parser.

Knows argparse and TOML, no model.
"""

from __future__ import annotations

import argparse
import math
import os
import tomllib
from collections.abc import Callable, Container, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from onnxprune import __version__
from onnxprune.cli.commands import COMMANDS, job
from onnxprune.cli.helping import Answer, Formatter, shown
from onnxprune.cli.line import Line, Said, Unknown, sort
from onnxprune.errors import UsageError
from onnxprune.files import check_finite, check_inputs
from onnxprune.options import NUMBERS, WORDS, bytes_of, listed, near, objection


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a UsageError of one line, that finds files wherever they stand among the flags, and
    that takes a file of flags. common: the flags that --help explains; all of them where there are none."""

    common: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        """UsageError that says where the help is."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """What --help prints: the common flags where some are, and what others there are."""
        return shown(self, self.common, everything=not self.common)

    def format_all(self) -> str:
        """What --help-all prints."""
        return shown(self, self.common, everything=True)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A word that is none of the choices is refused in the words of `objection`, with the nearest."""
        if action.choices is not None and value not in action.choices:
            words = [*map(str, action.choices)]
            raise argparse.ArgumentError(action, f"{value!r} is not {listed(words)}{near(str(value), words)}")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, and for what they leave out those of the file that --config names. UsageError where they are
        wrong, or a model is not there: that is known before anything heavy is imported."""
        args = self._parsed(argv)
        given = [getattr(args, action.dest, None) for action in self._actions if action.type is model]
        check_inputs(path for path in given if path is not None)
        return args

    def _parsed(self, argv: Sequence[str]) -> argparse.Namespace:
        end = [*argv, "--"].index("--")
        for at, word in enumerate(argv[:end]):  # help is given whatever else is there
            if isinstance(self._option_string_actions.get(word.partition("=")[0]), Answer):
                return self.parse_args(argv[at : at + 2])
        line = self._sorted(argv)
        words = [word for said in line.said for word in said.words()]
        given = {said.action.dest for said in line.said}
        for said in line.said:
            if said.action.dest == "config" and said.values:
                words += self._configured(Path(said.value()), given)
        return self.parse_args([*words, "--", *(word for _, word in line.files)])

    def _sorted(self, argv: Sequence[str]) -> Line:
        """The words by what they are, as many files as there have to be. UsageError where that cannot be."""
        try:
            line = sort(argv, self._option_string_actions)
        except Unknown as unknown:
            meant = self._elsewhere(unknown.word) or near(unknown.word, self._option_string_actions)
            if os.path.exists(unknown.word):
                meant = f"; for the file of that name write ./{unknown.word}"
            self.error(f"there is no flag {unknown.word}{meant}")
        for said in line.said:
            if said.joined and said.action.nargs == 0:
                self.error(f"{said.flag} takes no value; leave '={said.values[0][1]}' out")
        line.check_once()
        names = [action.dest for action in self._get_positional_actions()]
        least = sum(action.nargs != "?" for action in self._get_positional_actions())
        line.give_back(least - len(line.files))
        if missing := names[len(line.files) : least]:
            how = f"; write {' '.join(names)} first, or -- before them, as {line.greedy()} takes what follows it"
            self.error(f"the following arguments are required: {', '.join(missing)}{how if line.greedy() else ''}")
        for at, word in line.files[len(names) :]:
            meant = self._meant(word, line.before(at))
            self.error(f"'{word}' is one too many, {self.prog} takes {' '.join(names)}{meant}")
        return line

    def _meant(self, word: str, before: Said | None) -> str:
        """The end of a message about a word too many; `before`: the flag whose values stand before it."""
        if before:
            return f"; {before.flag} takes one value, and has '{before.value()}'"
        if f"--{word.partition('=')[0]}" in self._option_string_actions:
            return f"; did you mean --{word}?"
        return f"; did you mean --ratio {word}?" if _is_share(word) else ""

    def _elsewhere(self, flag: str) -> str:
        """The end of a message about a flag that other commands have."""
        owners = [name for name in COMMANDS if flag in job(name).parser()._option_string_actions]
        return f", but {listed(owners, 'and')} {'has' if len(owners) == 1 else 'have'} one" if owners else ""

    def _configured(self, path: Path, said: Container[str]) -> Iterator[str]:
        """The file's entries as arguments, but for those whose flag is given."""
        for key, value in read_toml(path).items():
            flag = f"--{key.replace('_', '-')}"
            action = self._option_string_actions.get(flag)
            if action is None or action.dest == "config" or isinstance(action, Answer):
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
    check_finite(path)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; --config takes a TOML file of flags") from None
    except OSError as error:
        raise UsageError(f"{path or '--config'}: {error.strerror}; --config takes a TOML file of flags") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None


def _is_share(word: str) -> bool:
    """Whether a word is a number that a ratio may be."""
    try:
        return not objection("ratio", float(word))
    except ValueError:
        return False


def model_to_write(text: str) -> Path:
    """A type of arguments: the file of a model; a number is none."""
    if _is_share(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a number and no file; did you mean --ratio {text}?")
    return Path(text)


def parser(prog: str, description: str, epilog: str | None = None, *, works: bool = True) -> Parser:
    """A parser with what all commands take; flags that are not given leave no trace. works: whether the command does
    more than print."""
    made = Parser(
        prog,
        description=description,
        epilog=epilog,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=Formatter,
    )
    made._optionals.title = "general"
    made.add_argument("-h", "--help", action=Answer, answer=lambda p, _: p.format_help(), help="print this help")
    made.add_argument(
        "--help-all", action=Answer, answer=lambda p, _: p.format_all(), help="print what every flag does"
    )
    made.add_argument(
        "-v", "--version", action=Answer, answer=lambda *_: f"onnxprune {__version__}\n", help="print the version"
    )
    if works:
        made.add_argument("--verbose", action="store_true", default=False, help="print everything, and tracebacks")
        made.add_argument(
            "--config",
            metavar="TOML",
            default=None,
            help="a file of flags (ratio = 0.3); given ones win (default none)",
        )
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


def model(text: str) -> Path:
    """The path of a model to read. `Parser.parse` sees to it that it is there; --help is answered before."""
    return Path(text)


def option(name: str, *, several: bool = False) -> Callable[[str], Any]:
    """A type of arguments: values of the option `name`, refused in the words that it has in Python, too. several: more
    of them may follow."""
    read = READERS.get(name) or NUMBERS[name]

    def convert(text: str) -> Any:
        try:
            value = read(text)
            wrong = objection(name, value)
        except ValueError:
            wrong = WORDS[name] if name in READERS else objection(name, text)
        if wrong:
            parts = [part for part in text.split(",") if several and _is_share(part)]
            spaced = f"; write {' '.join(parts)}, with spaces" if len(parts) > 1 else ""
            raise argparse.ArgumentTypeError(f"{text!r} {wrong}{spaced}")
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


READERS: dict[str, Callable[[str], Any]] = {
    "mean": _numbers,
    "std": _numbers,
    "scale": _fraction,
    "memory": bytes_of,
    "round_to": lambda text: 0 if text == "auto" else int(text),
    "finetune": str,
    "max_latency": str,
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
