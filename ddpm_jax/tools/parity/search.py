"""The search for the named conventions under which ours is theirs: of samplers, guidance, losses and networks alike.

A convention is a function S -> S that changes one thing of our side, or returns None where nothing changes. What S is,
a table, a form of a loss, the settings of a network, is the caller's.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from ddpm_jax.tools.parity.results import Result

S = TypeVar("S")
Conventions = Mapping[str, Callable[[S], S | None]]


class Explanation(NamedTuple):
    """The conventions under which both sides agree, and how well."""

    names: tuple[str, ...]
    difference: float


def having(**fields: Any) -> Callable[[Any], Any]:
    """A convention: the dataclass with these fields, where it has others."""

    def change(ours: Any) -> Any:
        if all(getattr(ours, name) == value for name, value in fields.items()):
            return None
        return dataclasses.replace(ours, **fields)

    return change


def combinations(ours: S, conventions: Conventions[S], largest: int) -> Iterator[tuple[tuple[str, ...], S]]:
    """Everything that up to `largest` conventions make of ours, few before many."""
    for size in range(1, largest + 1):
        for names in itertools.combinations(conventions, size):
            changed: S | None = ours
            for name in names:
                changed = conventions[name](changed)
                if changed is None:
                    break
            if changed is not None:
                yield names, changed


def explain(
    ours: S, conventions: Conventions[S], difference: Callable[[S], float], tolerance: float, largest: int = 2
) -> Explanation | None:
    """The fewest conventions with which difference(changed) <= tolerance; of equally few, the closest.

    Args:
      ours: which differs.
      conventions: by name.
      difference: of a changed one from theirs; ValueError where there cannot be such a one.
      tolerance: relative.
      largest: how many conventions at once.
    """
    best: Explanation | None = None
    for names, changed in combinations(ours, conventions, largest):
        if best is not None and len(names) > len(best.names):
            break
        try:
            found = difference(changed)
        except ValueError:
            continue  # a convention that this sampler, loss or network cannot have
        if found <= tolerance and (best is None or found < best.difference):
            best = Explanation(names, found)
    return best


def explained(
    result: Result, ours: S, conventions: Conventions[S], difference: Callable[[S], float], largest: int = 2
) -> Result:
    """The result as it is, unless it is a difference that conventions explain: those are then in its note."""
    if result.verdict != "different" or result.tolerance is None:
        return result
    because = explain(ours, conventions, difference, result.tolerance, largest)
    if because is None:
        return result
    note = f"matches to {because.difference:.1e} with " + " and ".join(because.names)
    return dataclasses.replace(result, verdict="explained", note=note)
