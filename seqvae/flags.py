"""Settings classes as flags: every field is one, and the comment on its line, or above it, is its help text."""

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import NamedTuple, NewType, Union, get_args, get_origin, get_type_hints

from seqvae.config import VARIANTS

VariantName = NewType("VariantName", str)  # of a group that comes in variants


class Flag(NamedTuple):
    """A field of a settings class as a flag."""

    name: str  # objective.svg-beta
    section: str  # heading in the help
    kind: object  # type of a value: int, float, bool, str, Path, VariantName or a Literal
    optional: bool  # whether the field may be None
    several: bool  # whether it holds several values
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


def flags_of(cls: type, values: dict[str, object], group: str = "") -> dict[str, Flag]:
    """The flags of a settings class, whose groups have the variants that `values`, a tree as in JSON, names."""
    found: dict[str, Flag] = {}
    section = inspect.getdoc(cls).partition("\n")[0].rstrip(".")
    if group:
        chosen = f" ({values[VARIANTS[group][0]]})" if group in VARIANTS else ""
        section = f"{group}{chosen}: {section}"
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        value = values.get(field.name, dataclasses.MISSING)
        if isinstance(value, dict):
            key, classes = VARIANTS.get(field.name, (None, {}))
            found |= flags_of(classes[value[key]] if key else hints[field.name], value, field.name)
            continue
        hint, optional, several = hints[field.name], False, False
        if get_origin(hint) in (Union, UnionType):
            (hint,), optional = (part for part in get_args(hint) if part is not NoneType), True
        if get_origin(hint) is tuple:
            hint, several = get_args(hint)[0], True
        if group in VARIANTS and field.name == VARIANTS[group][0]:
            hint = VariantName
        name = (f"{group}.{field.name}" if group else field.name).replace("_", "-")
        found[name] = Flag(name, section, hint, optional, several, value, comments(cls).get(field.name, ""))
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
            expected = nearest(names[-1], classes) or f"expected one of {', '.join(classes)}"
            raise ValueError(f"{flag} is {names[-1]!r}; {expected}")
        old, new = classes[values[group][key]], classes[names[-1]]
        defaults = {field.name: field.default for field in dataclasses.fields(old)}
        wanted = {field.name for field in dataclasses.fields(new)} - {key}
        kept = {k: v for k, v in values[group].items() if k in wanted and v != defaults[k]}
        values[group] = kept | {key: names[-1]}
        for field in dataclasses.fields(new):
            if field.default is not dataclasses.MISSING:
                values[group].setdefault(field.name, field.default)
    return values


def tidy(argv: Sequence[str], flags: dict[str, Flag]) -> list[str]:
    """One spelling of each flag: dashes, and `--flag` or `--no-flag` for a switch that was given True or False."""
    switches = {f"--{flag.name}" for flag in flags.values() if flag.kind is bool}
    found: list[str] = []
    for arg in argv:
        name, equals, value = arg.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        if found and found[-1] in switches and arg.lower() in ("true", "false"):
            name, equals, value = found.pop(), "=", arg
        if name in switches and value.lower() in ("true", "false"):
            found.append(name if value.lower() == "true" else f"--no-{name[2:]}")
        else:
            found.append(name + equals + value)
    return found


def explain(word: str, flags: dict[str, Flag], values: dict[str, object]) -> str:
    """What is wrong with a word that the parser does not know."""
    if not word.startswith("--"):
        return f"unexpected argument {word!r}"
    name = word.removeprefix("--").removeprefix("no-").partition("=")[0]
    group, _, field = name.rpartition(".")
    if group in VARIANTS and group in values:  # train.py's; evaluate.py and predict.py have no groups
        key, classes = VARIANTS[group]
        wanted = field.replace("-", "_")
        owners = [owner for owner, cls in classes.items() if wanted in {f.name for f in dataclasses.fields(cls)}]
        if owners:
            chosen, remedy = values[group][key], f"drop it, or pass --{group}.{key} {owners[0]}"
            return f"--{name} is a setting of {group} {', '.join(owners)}, and this run has {chosen}; {remedy}"
    return f"unknown flag --{name}; {nearest(name, flags, '--') or '--help-all lists them'}"


def nearest(word: str, known: Iterable[str], before: str = "") -> str:
    """`the nearest is demo`; nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"the nearest is {before}{near[0]}" if near else ""
