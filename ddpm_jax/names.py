"""Names in configurations: of one among many choices, and of a function's arguments; errors a user can act on."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, name: str, allowed: Iterable[str]) -> ValueError:
    """The error for a name that is none of those allowed: the name, the nearest match, all that are known."""
    allowed = list(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}{hint} (known: {', '.join(allowed)})")


def choose(kind: str, name: str, choices: Mapping[str, T]) -> T:
    """choices[name].

    Raises:
      ValueError: no such name.
    """
    if not isinstance(name, str) or name not in choices:
        raise unknown(kind, name, choices)
    return choices[name]


def apply(kind: str, name: str, functions: Mapping[str, Callable[..., T]], *args: Any, **arguments: float) -> T:
    """functions[name](*args, **arguments), where keyword-only arguments are numbers.

    Raises:
      ValueError: no such function; an argument it does not take, or one that is not a finite number.
    """
    function = choose(kind, name, functions)
    allowed = function.__kwdefaults__ or {}
    for argument, value in arguments.items():
        if argument not in allowed:
            raise ValueError(f"{kind} {name!r} takes {', '.join(allowed) or 'no arguments'}, got {argument!r}")
        # A comparison, because math.isfinite fails for whole numbers that no float holds.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{argument} of {kind} {name!r} must be a finite number, got {value!r}")
    return function(*args, **{argument: float(value) for argument, value in arguments.items()})
