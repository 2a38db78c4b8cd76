"""What the commands share: a parser made from a settings class, one-line errors, exit codes. Nothing imports torch.

Every field of the class is a flag, and the comment on its line, or above it, is the flag's help text. Exit codes: 0
done, 1 the work failed, 2 the arguments, the run or the data are wrong, 130 Ctrl-C.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, NamedTuple, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from seqvae import __version__
from seqvae.config import VARIANTS, one_line
from seqvae.launch import is_first, launched, say
from seqvae.memory import is_out_of_memory, keep_memory

Settings = TypeVar("Settings")
VariantName = NewType("VariantName", str)  # of a group that comes in variants
WIDTH, HELP_COLUMN = 120, 38  # of the help, in characters


# ---- flags


class Flag(NamedTuple):
    """A field of a settings class as a flag."""

    name: str  # objective.svg-beta
    section: str  # heading in the help
    hint: object  # the field's type
    default: object  # dataclasses.MISSING where one must be given
    help: str


@functools.cache
def comments(cls: type) -> dict[str, str]:
    """The comment on each field's line, after those on the lines above it; an inherited one where there is none."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if line.startswith("    # "):
                above.append(line.strip(" #"))
                continue
            field = re.match(r"    (\w+): .*?(?:  # (.*))?$", line)
            if field and (above or field[2]):
                found[field[1]] = " ".join([*above, *([field[2]] if field[2] else [])])
            above = []
    return found


def flags_of(cls: type, values: dict[str, object], group: str = "") -> list[Flag]:
    """The flags of a settings class, whose groups have the variants that `values`, a tree as in JSON, names."""
    found = []
    heading = inspect.getdoc(cls).partition("\n")[0].rstrip(".")
    if group:
        chosen = f" ({values[VARIANTS[group][0]]})" if group in VARIANTS else ""
        heading = f"{group}{chosen}: {heading}"
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], values.get(field.name, dataclasses.MISSING)
        if isinstance(value, dict):
            if field.name in VARIANTS:
                key, classes = VARIANTS[field.name]
                hint = classes[value[key]]
            found += flags_of(hint, value, field.name)
            continue
        if group in VARIANTS and field.name == VARIANTS[group][0]:
            hint = VariantName
        name = f"{group}.{field.name}" if group else field.name
        found.append(Flag(name.replace("_", "-"), heading, hint, value, comments(cls).get(field.name, "")))
    return found


def choose_variants(values: dict[str, object], argv: Sequence[str]) -> dict[str, object]:
    """`values` with the variants that the flags name (`--objective.name iwae`).

    Of the old variant's settings those remain that the new one has too, and that differ from their defaults.
    """
    values = dict(values)
    for group, (key, classes) in VARIANTS.items():
        flag = f"--{group}.{key}"
        words = [word for arg in argv for word in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])]
        names = [after for word, after in zip(words, words[1:]) if word == flag]
        if not names:
            continue
        if names[-1] not in classes:
            raise ValueError(f"{flag} is {names[-1]!r}{_nearest(names[-1], classes)}")
        old, new = classes[values[group][key]], classes[names[-1]]
        defaults = {field.name: field.default for field in dataclasses.fields(old)}
        wanted = {field.name for field in dataclasses.fields(new)} - {key}
        kept = {k: v for k, v in values[group].items() if k in wanted and v != defaults[k]}
        values[group] = kept | {key: names[-1]}
        for field in dataclasses.fields(new):
            if field.default is not dataclasses.MISSING:
                values[group].setdefault(field.name, field.default)
    return values


# ---- parser


class Parser(argparse.ArgumentParser):
    """Raises ValueError instead of printing usage and leaving."""

    def error(self, message: str) -> None:
        raise ValueError(message)


def parse(
    cls: type[Settings],
    argv: Sequence[str],
    values: dict[str, object],
    make: Callable[[dict[str, object]], Settings],
    *,
    usage: str,
    description: str,
    common: Sequence[str],
    positional: Sequence[str] = (),
) -> Settings:
    """Settings from flags.

    Args:
        cls: dataclass of the settings.
        values: what holds where no flag is given, a tree as in JSON.
        make: turns the completed tree into settings; ValueError with one line if something is wrong.
        common: flags that --help shows; --help-all shows all.
        positional: fields that are given without their names.
    """
    flags = {flag.name: flag for flag in flags_of(cls, values)}
    argv = [_dashes(arg) for arg in argv]
    everything = "--help-all" in argv
    parser = Parser(usage=usage, description=description, add_help=False, allow_abbrev=False, formatter_class=_Format)
    sections: dict[str, argparse._ArgumentGroup] = {}
    for flag in flags.values():
        if flag.section not in sections:
            sections[flag.section] = parser.add_argument_group(flag.section)
        _add(sections[flag.section], flag, shown=everything or flag.name in common, positional=flag.name in positional)
    about = parser.add_argument_group("About the command")
    about.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS, help="this text")
    about.add_argument("--help-all", action="store_true", default=argparse.SUPPRESS, help=f"all {len(flags)} settings")
    about.add_argument("--version", action="store_true", default=argparse.SUPPRESS, help="print it and stop")
    if {"-h", "--help", "--help-all"} & set(argv):
        say(parser.format_help(), end="")
        raise SystemExit(0)
    if "--version" in argv:
        show_version()
    given, unknown = parser.parse_known_intermixed_args(_booleans(argv, flags))
    if unknown:
        raise ValueError(_explain(unknown[0], flags, values))
    return make(_with(values, {name: _none(value, flags[name].hint) for name, value in vars(given).items()}))


def parse_flat(cls: type[Settings], argv: Sequence[str], **options) -> Settings:
    """As `parse`, for a settings class without groups."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}

    def make(values: dict[str, object]) -> Settings:
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise ValueError(one_line(error, flag="--")) from None

    return parse(cls, argv, defaults, make, **options)


class _Format(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN, width=WIDTH)


def show_version() -> None:
    """Print it and stop."""
    say(f"seqvae {__version__}")
    raise SystemExit(0)


def _add(section: argparse._ArgumentGroup, flag: Flag, shown: bool, positional: bool) -> None:
    hint = _without_none(flag.hint)
    options: dict[str, object] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    if shown:
        options["help"] = (flag.help + _default(flag.default)).replace("%", "%%")
    several = get_origin(hint) is tuple
    if several:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        options["choices"] = [*get_args(hint), *(["None"] if NoneType in get_args(flag.hint) else [])]
    if positional:
        options["help"] = flag.help if shown else argparse.SUPPRESS
        section.add_argument(flag.name, nargs="*" if several else None, metavar=flag.name.upper(), **options)
    elif hint is bool:
        action = argparse.BooleanOptionalAction
        section.add_argument(f"--{flag.name}", dest=flag.name, action=action, **options)
    else:
        if get_origin(hint) is not Literal:
            options["metavar"] = {int: "N", float: "X", Path: "PATH", VariantName: "NAME"}.get(hint, "TEXT")
        section.add_argument(f"--{flag.name}", dest=flag.name, nargs="+" if several else None, **options)


def _without_none(hint: object) -> object:
    """T of T | None."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    return hint


def _none(value: object, hint: object) -> object:
    """None for the word where the field may be None."""
    return None if value == "None" and NoneType in get_args(hint) else value


def _default(value: object) -> str:
    """In brackets, for the help; nothing for None, whose meaning the help text tells."""
    if value is None or value == ():
        return ""
    if value is dataclasses.MISSING:
        return " (required)"
    return f" (default: {' '.join(value) if isinstance(value, tuple) else value})"


def _dashes(arg: str) -> str:
    """--model.z_dim=3 -> --model.z-dim=3."""
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value if arg.startswith("--") else arg


def _booleans(argv: Sequence[str], flags: dict[str, Flag]) -> list[str]:
    """`--flag True` and `--flag False` as `--flag` and `--no-flag`."""
    found: list[str] = []
    for word in (part for arg in argv for part in _split(arg, flags)):
        before = found[-1].removeprefix("--") if found else ""
        if word.lower() in ("true", "false") and before in flags and _without_none(flags[before].hint) is bool:
            found[-1] = f"--{before}" if word.lower() == "true" else f"--no-{before}"
        else:
            found.append(word)
    return found


def _split(arg: str, flags: dict[str, Flag]) -> list[str]:
    """--flag=True -> --flag True, for flags that are bool."""
    name, equals, value = arg.removeprefix("--").partition("=")
    return [f"--{name}", value] if equals and name in flags and _without_none(flags[name].hint) is bool else [arg]


def _with(values: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """The tree with what was given, by flag names."""
    tree = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for name, value in given.items():
        group, _, field = name.replace("-", "_").rpartition(".")
        (tree[group] if group else tree)[field] = value
    return tree


def _explain(word: str, flags: dict[str, Flag], values: dict[str, object]) -> str:
    """What is wrong with a word that the parser does not know."""
    if not word.startswith("--"):
        return f"unexpected argument {word!r}"
    name = word.removeprefix("--").partition("=")[0]
    group, _, field = name.rpartition(".")
    if group in VARIANTS:
        key, classes = VARIANTS[group]
        wanted = field.removeprefix("no-").replace("-", "_")
        owners = [owner for owner, cls in classes.items() if wanted in {f.name for f in dataclasses.fields(cls)}]
        if owners:
            chosen, remedy = values[group][key], f"drop it, or pass --{group}.{key} {owners[0]}"
            return f"--{name} is a setting of {group} {', '.join(owners)}, and this run has {chosen}; {remedy}"
    return f"unknown flag --{name}{_nearest(name, flags, '--')}"


def _nearest(word: str, known: Sequence[str], before: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    if near:
        return f"; the nearest is {before}{near[0]}"
    return "; --help-all lists the settings" if before else f", expected one of {', '.join(known)}"


def unknown_name(what: str, word: str, known: Sequence[str]) -> ValueError:
    """`unknown preset 'dmeo'; the nearest is demo`."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return ValueError(f"unknown {what} {word!r}; " + (f"the nearest is {near[0]}" if near else "--help lists them"))


# ---- ends


class Ended(Exception):
    """A command ends with one line and an exit code; `everywhere`: each process that meets it says so."""

    def __init__(self, line: str, code: int, everywhere: bool = False) -> None:
        super().__init__(line)
        self.code, self.everywhere = code, everywhere


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """Until the work begins: errors are the user's, and end with code 2."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise Ended(str(error), 2) from None
    except OSError as error:  # a file where a folder is meant, a folder that may not be read
        raise Ended(f"cannot use {error.filename}: {error.strerror}", 2) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Ended("no room for model and data in the device's memory; see what else uses it", 1, True) from None


@contextlib.contextmanager
def working(where: Callable[[], object], smaller: str) -> Iterator[None]:
    """While results are computed and written: errors end with code 1.

    Args:
        where: the place that is written, asked for when writing failed.
        smaller: the flag that needs less memory, with its value.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Ended(f"the device's memory is too small; lower {smaller}", 1, True) from None
    except OSError as error:
        raise Ended(f"cannot write {error.filename or where()}: {error.strerror or error}", 1, True) from None


@contextlib.contextmanager
def together(remedy: str) -> Iterator[None]:
    """The part that several processes do: they part at its end, unless one has failed and others may be gone."""
    from seqvae import distributed

    try:
        yield
    except distributed.PeerLost as error:
        raise Ended(f"{error}; {remedy}", 1, everywhere=True) from None
    except Ended as end:
        if end.code != 1:
            distributed.stop()
        raise
    distributed.stop()


def finish(program: str, work: Callable[[], int | None]) -> int:
    """Exit code of a command; where it ends with an error, its line goes to the terminal."""
    try:
        return work() or 0
    except Ended as end:
        if end.everywhere or is_first():
            print(f"{program}: {end}", file=sys.stderr)
        return end.code
    except SystemExit as end:  # help and version
        return end.code


def start(main: Callable[[list[str]], int], *, orderly: bool = True) -> None:
    """Run a command as a program; `orderly`: SIGTERM ends it so that no half-written file stays."""
    keep_memory()
    if orderly:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = main(sys.argv[1:])
        if code == 1 and launched()[1] > 1:
            sys.stdout.flush()
            os._exit(code)  # an orderly exit would wait for a process that has gone
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
