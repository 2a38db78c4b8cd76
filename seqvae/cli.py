"""What the commands share: a parser for a settings class, one-line errors, exit codes. Nothing here imports torch.

Exit codes: 0 done, 1 the work failed, 2 the arguments, the run or the data are wrong, 130 Ctrl-C.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from seqvae import __version__
from seqvae.config import one_line
from seqvae.flags import Flag, VariantName, explain, flags_of, tidy
from seqvae.launch import is_first, launched, say
from seqvae.memory import is_out_of_memory, keep_memory

Settings = TypeVar("Settings")
WIDTH, HELP_COLUMN = 120, 38  # of the help, in characters


# ---- parser


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
    """Settings from flags; ValueError with one line. Help and version print and raise SystemExit(0).

    Args:
        cls: dataclass of the settings.
        values: what holds where no flag is given, a tree as in JSON.
        make: turns the completed tree into settings; ValueError with one line if something is wrong.
        common: flags that --help shows; --help-all shows all.
        positional: fields that are given without their names.
    """
    flags = flags_of(cls, values)
    argv = tidy(argv, flags)
    parser = Parser(usage=usage, description=description, add_help=False, allow_abbrev=False, formatter_class=_Format)
    sections = {
        section: parser.add_argument_group(section) for section in dict.fromkeys(f.section for f in flags.values())
    }
    for flag in flags.values():
        shown = "--help-all" in argv or flag.name in common
        _add(sections[flag.section], flag, shown, flag.name in positional)
    about = parser.add_argument_group("about the command")
    for names, text in (
        (("-h", "--help"), "this text"),
        (("--help-all",), f"all {len(flags)} settings"),
        (("--version",), "print it and stop"),
    ):
        about.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
    if {"-h", "--help", "--help-all"} & set(argv):
        say(parser.format_help(), end="")
        raise SystemExit(0)
    if "--version" in argv:
        show_version()
    given, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ValueError(explain(unknown[0], flags, values))
    tree = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for name, value in vars(given).items():
        group, _, field = name.replace("-", "_").rpartition(".")
        (tree[group] if group else tree)[field] = None if value == "None" and flags[name].optional else value
    return make(tree)


def parse_flat(cls: type[Settings], argv: Sequence[str], **options) -> Settings:
    """As `parse`, for a settings class without groups."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}

    def make(values: dict[str, object]) -> Settings:
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise ValueError(one_line(error, flag="--")) from None

    return parse(cls, argv, defaults, make, **options)


def show_version() -> None:
    """Print it and stop."""
    say(f"seqvae {__version__}")
    raise SystemExit(0)


class Parser(argparse.ArgumentParser):
    """Raises ValueError instead of printing usage and leaving."""

    def error(self, message: str) -> None:
        raise ValueError(message)


class _Format(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN, width=WIDTH)


def _add(section: argparse._ArgumentGroup, flag: Flag, shown: bool, positional: bool) -> None:
    """The flag as an argument that is absent unless given; pydantic converts its value."""
    options: dict[str, object] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    if shown:
        options["help"] = (flag.help + ("" if positional else _default(flag.default))).replace("%", "%%")
    if positional:
        nargs = "*" if flag.several else None
        section.add_argument(flag.name, nargs=nargs, metavar=flag.name.upper(), **options)
    elif flag.kind is bool:
        section.add_argument(f"--{flag.name}", dest=flag.name, action=argparse.BooleanOptionalAction, **options)
    else:
        if get_origin(flag.kind) is Literal:
            options["choices"] = [*get_args(flag.kind), *(["None"] if flag.optional else [])]
        else:
            options["metavar"] = {int: "N", float: "X", Path: "PATH", VariantName: "NAME"}.get(flag.kind, "TEXT")
        section.add_argument(f"--{flag.name}", dest=flag.name, nargs="+" if flag.several else None, **options)


def _default(value: object) -> str:
    """In brackets, for the help; nothing for None, whose meaning the help text tells."""
    if value is None or value == ():
        return ""
    if value is dataclasses.MISSING:
        return " (required)"
    return f" (default: {' '.join(value) if isinstance(value, tuple) else value})"


# ---- ends


class Ended(Exception):
    """A command ends with one line and an exit code; `everywhere`: each process that meets it says so."""

    def __init__(self, line: str, code: int, everywhere: bool = False) -> None:
        super().__init__(line)
        self.code, self.everywhere = code, everywhere


@contextlib.contextmanager
def preparing(device: Callable[[], object] = lambda: "the device") -> Iterator[None]:
    """Until the work begins: errors are the user's, and end with code 2. `device` is asked for if it has no room."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise Ended(str(error), 2) from None
    except OSError as error:  # a file where a folder is meant, a folder that may not be read
        raise Ended(f"cannot use {error.filename}: {error.strerror}", 2) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Ended(f"no room for model and data on {device()}; see what else uses it", 1, True) from None


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
        if error.errno is None:  # data that a reader of ours refuses
            raise Ended(str(error), 1, True) from None
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
            distributed.leave()
        raise
    distributed.leave()


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


def run_program(main: Callable[[list[str]], int], *, orderly: bool = True) -> None:
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
