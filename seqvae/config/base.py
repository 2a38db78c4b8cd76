"""What all groups of settings share: checks that name the flag, and the lookup of variants by name."""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, get_args, get_type_hints

from pydantic import ConfigDict, Field

MAX_SEED = 2**32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings: `--GROUP.FIELD` on the command line. Its variants check themselves in `__post_init__`."""

    group: ClassVar[str]

    __pydantic_config__ = ConfigDict(extra="forbid")

    def require(self, expected: str, holds: Callable[[float], bool], *names: str) -> None:
        """ValueError for the first of these fields that is set and does not hold."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{self.flag(name)} must be {expected}, got {value}")

    def refuse(self, reason: str, *names: str) -> None:
        """ValueError for the first of these fields that differs from its default; `reason` says why that is wrong."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                remedy = "drop it" if field.default is None else f"drop it (or pass its default, {field.default})"
                raise ValueError(f"{self.flag(field.name)} {reason}; {remedy}")

    def flag(self, name: str) -> str:
        """`objective.svg-beta` for svg_beta."""
        return f"{self.group}.{name.replace('_', '-')}"


def variants(key: str, *classes: type[Settings]) -> dict[str, type[Settings]]:
    """The classes by the names that their field `key` may hold."""
    return {name: cls for cls in classes for name in get_args(get_type_hints(cls)[key])}


def union(key: str, *classes: type[Settings]) -> object:
    """The type of a group that is one of `classes`; JSON tells them apart by `key`."""
    return Annotated[functools.reduce(operator.or_, classes), Field(discriminator=key)]
