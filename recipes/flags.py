"""Flags to a configuration, and what is wrong with them in one line.

tyro reads the flags. Where it refuses, it draws a box; `_one_line` says the same as `--flag: what is wrong`, which is what people and
scripts can use.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

import attrs

C = TypeVar("C")

WIDE = "100000"
"""Columns: a complaint stays on one line."""
SIGNS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}


class WrongFlags(ValueError):
    """The message says which flag, and what it takes."""


def parse(config: type[C] | C, args: Sequence[str], name: str) -> C:
    """The configuration that the flags describe. Prints help and exits with 0 for `--help`. Raises WrongFlags."""
    import tyro

    kind: type[C] = config if isinstance(config, type) else type(config)
    options: dict[str, Any] = {} if isinstance(config, type) else {"default": config}
    description = f"{(kind.__doc__ or '').strip()}\n\nWith `--traceback`, an error also shows where it came from."
    asks_for_help = "-h" in args or "--help" in args
    said = io.StringIO()
    try:
        with contextlib.nullcontext() if asks_for_help else _captured(said):
            parsed: C = tyro.cli(
                kind,
                prog=name,
                description=description,
                args=list(args),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
                **options,
            )
            return parsed
    except SystemExit as end:
        if asks_for_help or not end.code:
            raise
        raise WrongFlags(_one_line(said.getvalue(), kind, args)) from None


@contextlib.contextmanager
def _captured(said: io.StringIO) -> Iterator[None]:
    """stderr goes into `said`, with lines as long as they are."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDE
    try:
        with contextlib.redirect_stderr(said):
            yield
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def _one_line(box: str, kind: type, args: Sequence[str]) -> str:
    """The complaint inside tyro's box, said as `--flag: what is wrong`."""
    complaint = _complaint(box)
    if match := re.fullmatch(r"Unrecognized options: (.*)", complaint):
        return _unknown(match[1].split(", "), kind, args)
    if match := re.fullmatch(r"Missing value for argument '([^']+)'.*", complaint):
        return f"{match[1]}: needs a value"
    if match := re.fullmatch(r"invalid choice (.+) for argument '([^']+)'. Expected one of \((.*?),?\)\.?", complaint):
        choices = ", ".join(choice.strip("' ") for choice in match[3].split(","))
        return f"{match[2]}: must be one of {choices}, not {match[1]}"
    if match := re.fullmatch(r"Error parsing (--[^:]+): (.*)", complaint):
        return f"{match[1]}: {_bad_value(match[2])}"
    if match := re.fullmatch(r"Error parsing ([^:]+): (.*)", complaint):
        prefix = "" if match[1] == kind.__name__ else match[1].replace("_", "-") + "."
        return _from_validator(match[2], prefix, _class_at(kind, prefix))
    return complaint or "the flags cannot be understood"


def _complaint(box: str) -> str:
    """What stands in the box before its first rule or empty line, as one line."""
    lines = [line.strip("│╰╯─ ") for line in box.splitlines() if not line.startswith("╭")]
    if "╭" not in box:  # a terminal without letters for boxes: a title, and rules of dashes
        rules = [number for number, line in enumerate(lines) if line and not line.strip("-")]
        lines = [line if line.strip("-") else "" for line in lines[rules[0] + 1 if rules else 0 :]]
    found = itertools.takewhile(bool, lines)
    return " ".join(found)


def _unknown(words: Sequence[str], kind: type, args: Sequence[str]) -> str:
    flag = next((word for word in words if word.startswith("-")), None)
    if flag is None:
        switch = next((word for word in args if any(word.endswith(f"={value}") for value in words)), None)
        if switch is not None:
            return f"{switch.partition('=')[0]}: is a switch and takes no value"
        return f"{words[0]}: is not a flag; every value follows its flag (--help lists them)"
    flag = flag.partition("=")[0]
    known = list(_flags(kind))
    near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
    if not near:  # `--minibatches` for `--schedule.minibatches`
        near = [other for other in known if other.rpartition(".")[2] == flag.lstrip("-")][:1]
    return f"{flag}: there is no such flag; {f'did you mean {near[0]}?' if near else '--help lists them'}"


def _flags(kind: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in attrs.fields(kind):
        name = prefix + field.name.replace("_", "-")
        if attrs.has(hints[field.name]):
            yield from _flags(hints[field.name], f"{name}.")
        else:
            yield f"--{name}"


def _class_at(kind: type, prefix: str) -> type:
    """The class that configures `prefix`."""
    for name in prefix.rstrip(".").split(".") if prefix else ():
        kind = get_type_hints(kind)[name.replace("-", "_")]
    return kind


def _bad_value(complaint: str) -> str:
    value = re.search(r"""(?:: |\[)('[^']*'|"[^"]*")\]?\.?$""", complaint)
    shown = value[1] if value else "the value"
    if "int()" in complaint:
        return f"must be a whole number, not {shown}"
    if "to float" in complaint:
        return f"must be a number, not {shown}"
    if match := re.match(r"no type matching (\S+) could be instantiated", complaint):
        kinds = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "text", "{None}": "None"}
        wanted = [kinds.get(part, part) for part in match[1].split("|")]
        return f"must be {' or '.join(sorted(wanted, key=lambda kind: kind == 'None'))}, not {shown}"
    return complaint


def _from_validator(complaint: str, prefix: str, kind: type) -> str:
    """A ValueError of the class itself, its fields called by their flags."""
    names = {field.name: f"--{prefix}{field.name.replace('_', '-')}" for field in attrs.fields(kind)}
    if match := re.fullmatch(r"'(\w+)' must be (.*): (.*)", complaint):  # attrs' own validators
        sign, _, limit = match[2].partition(" ")
        return f"{names.get(match[1], match[1])}: must be {SIGNS.get(sign, sign)} {limit}, not {match[3]}"
    if match := re.match(r"'(\w+)' must be in (.*) \(got (.*?)\)", complaint):
        return f"{names.get(match[1], match[1])}: must be one of {match[2].strip('[]()')}, not {match[3]}"
    first, _, rest = complaint.partition(" ")
    if names_compound := "|".join(re.escape(name) for name in names if "_" in name):
        rest = re.sub(rf"(?<![\w-])({names_compound})(?!\w)", lambda match: names[match[1]], rest)
    field = first.strip(":'")
    if field in names:
        return f"{names[field]}{'' if rest.startswith('(') else ':'} {rest}"
    return f"{'--' + prefix.rstrip('.') + ': ' if prefix else ''}{first} {rest}"
