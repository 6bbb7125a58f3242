"""Looking a name up in a table of choices, with an error a user can act on."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

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
    if name not in choices:
        raise unknown(kind, name, choices)
    return choices[name]
