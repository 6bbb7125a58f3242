"""Which values the fields of a configuration take: those of their types, whole and finite; nothing is converted.

Types are those of JSON and of a command line: bool, int, float, str, a Literal, a choice with None, tuple[X, ...],
tuple[X, Y, Z], dict[str, X], and dataclasses of such, or a union of some with tags.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ddpm_jax.names import choose, unknown

T = TypeVar("T")
LARGEST = float(np.finfo(np.float32).max)  # what is computed on devices is float32
WORDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text", type(None): "None"}


class Section:
    """A part of a configuration: its fields are checked when it is made. XConfig calls them x.FIELD.

    Raises:
      ValueError: a value of another type, one that is not finite, or none of a Literal's.
    """

    @classmethod
    def section(cls) -> str:
        """What a configuration calls it; nothing is the configuration itself."""
        return cls.__name__.removesuffix("Config").lower()

    def __post_init__(self):
        prefix = self.section()
        for name, kind in _fields(type(self)).items():
            check(f"{prefix}.{name}" if prefix else name, getattr(self, name), kind)


class Tagged(Section):
    """One of several that a field may be: in JSON the mapping of its fields also has its name."""

    name: ClassVar[str]


FREE = {"free": True}
"""Metadata of a field that may change when a run is continued: the numbers of step k do not depend on it, but for the
rounding of sums in another order, as on another number of devices; or it decides whether there is a step k."""


def check(name: str, value: Any, kind: Any) -> None:
    """Whether a value is of a type.

    Raises:
      ValueError: it is not; says what `name` must be.
    """
    if _fits(value, kind):
        return
    if get_origin(kind) is Literal and isinstance(value, str):
        raise unknown(name, value, map(str, get_args(kind)))
    raise ValueError(f"{name} must be {_words(kind)}, got {value!r}")


def at_least(name: str, value: float, least: int = 1, most: int = 2**31 - 1) -> None:
    """Whether least <= value <= most, which is by default what fits 32 bits.

    Raises:
      ValueError: it is not.
    """
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


MOST_PIXELS = 2**26
"""Of an image: more are a mistake, of which XLA cannot count the products of attention, and ends the process."""
MOST_NUMBERS = 2**31 - 1
"""Of the images that are computed at once."""


def check_image_shape(name: str, shape: tuple[int, int, int]) -> None:
    """Whether [H, W, C] can be that of images.

    Raises:
      ValueError: it cannot.
    """
    height, width, channels = shape
    if min(shape) < 1 or height * width > MOST_PIXELS or channels > 2**16:
        raise ValueError(
            f"{name} must be positive, with at most {MOST_PIXELS} pixels and {2**16} channels, "
            f"got {height} x {width} x {channels}"
        )


def check_batch_size(name: str, batch_size: int, shape: tuple[int, int, int]) -> None:
    """Whether so many images [H, W, C] can be computed at once, on any machine.

    Raises:
      ValueError: they cannot.
    """
    at_least(name, batch_size, most=MOST_NUMBERS // math.prod(shape))


def in_unit_interval(name: str, value: float) -> None:
    """Whether 0 <= value < 1.

    Raises:
      ValueError: it is not.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def structure(values: Any, cls: type[T], path: str = "") -> T:
    """A dataclass from plain JSON values: mappings for dataclasses, lists for tuples.

    Raises:
      ValueError: unknown or missing keys, or values of another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{path or cls.__name__} must be a mapping, got {values!r}")
    kinds = _fields(cls)
    tag = f" {cls.name}" if issubclass(cls, Tagged) else ""
    for name in values:
        if name not in kinds:
            raise unknown(f"setting of {path or cls.__name__}{tag}", name, kinds)
    found = {}
    for item in dataclasses.fields(cls):  # type: ignore[reportArgumentType]
        name, kind = f"{path}.{item.name}" if path else item.name, kinds[item.name]
        if item.name in values:
            found[item.name] = _value(values[item.name], kind, name)
        elif item.default is item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    return cls(**found)


def plain(value: Any) -> Any:
    """What `structure` makes the same of: mappings for dataclasses, with the names of those that have one."""
    if not dataclasses.is_dataclass(value):
        return dict(value) if isinstance(value, dict) else value
    tag = {"name": value.name} if isinstance(value, Tagged) else {}
    return tag | {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}


def _value(value: Any, kind: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return structure(value, kind, name)  # type: ignore[reportArgumentType]
    choices = [choice for choice in get_args(kind) if isinstance(choice, type) and issubclass(choice, Tagged)]
    if choices:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a mapping, got {value!r}")
        tag = value.get("name", choices[0].name)  # without it, a file of before there were others
        chosen = choose(name, tag, {choice.name: choice for choice in choices})
        return structure({key: value[key] for key in value if key != "name"}, chosen, name)
    if isinstance(value, list) and any(get_origin(choice) is tuple for choice in (kind, *get_args(kind))):
        value = tuple(value)
    check(name, value, kind)
    return value


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}  # type: ignore[reportArgumentType]


def _fits(value: Any, kind: Any) -> bool:
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in choices)
    if origin is tuple:
        kinds = choices[:1] * len(value) if isinstance(value, tuple) and choices[-1] is ... else choices
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, choices[0]) and _fits(v, choices[1]) for k, v in value.items())
    number = not isinstance(value, bool)  # True is an int to Python
    if kind is float:  # a comparison, because isfinite fails for whole numbers that no float holds
        return number and isinstance(value, int | float) and abs(value) <= LARGEST
    return isinstance(value, kind) and (number or kind is not int)


def _words(kind: Any) -> str:
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(repr, choices))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, choices))
    if origin is tuple:
        return f"a tuple, each {_words(choices[0])}" + ("" if choices[-1] is ... else f", {len(choices)} in all")
    if origin is dict:
        return f"a dict from text to {_words(choices[1])}"
    return WORDS.get(kind, f"a {kind.__name__}")
