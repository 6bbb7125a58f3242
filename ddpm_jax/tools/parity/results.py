"""One line of the report: what was compared with what, how far apart they are, and what explains it."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

Verdict = Literal["same", "explained", "different", "not compared"]


@dataclasses.dataclass(frozen=True)
class Result:
    """max |ours - theirs| / max |theirs| of an item, over its steps, and where it first exceeds the tolerance.

    Attributes:
      group: one of command.GROUPS, or against.
      item: what of ours.
      against: what of theirs.
      verdict: "same" within the tolerance; "explained": different, and the same under the conventions in the note;
        "different": and nothing explains it; "not compared": why is in the note.
      difference: relative; None where nothing was compared.
      tolerance: what it may be.
      first_step: the first step, from 0, at which the difference exceeds the tolerance; None where none does, or where
        there are no steps.
      note: what explains it, or what the item is checked against instead.
    """

    group: str
    item: str
    against: str
    verdict: Verdict
    difference: float | None = None
    tolerance: float | None = None
    first_step: int | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest relative difference of all steps, and the first step beyond the tolerance."""

    largest: float
    first_step: int | None


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|; infinity where shapes differ or ours is not finite."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all() or not np.isfinite(theirs).all():
        return float("inf")
    scale = np.abs(theirs).max(initial=0.0)
    error = np.abs(ours - theirs).max(initial=0.0)
    return float(error / scale) if scale else float("inf" if error else 0.0)


def along(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: float) -> Difference:
    """`relative` of every step; of another number of steps, the difference is infinite from the first missing one."""
    errors = [relative(*pair) for pair in zip(ours, theirs, strict=False)]
    if len(ours) != len(theirs):
        errors.append(float("inf"))
    beyond = [step for step, error in enumerate(errors) if not error <= tolerance]
    return Difference(max(errors), beyond[0] if beyond else None)


def without_steps(difference: float, tolerance: float) -> Difference:
    """Of an item that has no steps: where it is too large, the first is said to be."""
    return Difference(difference, None if difference <= tolerance else 0)


def compared(group: str, item: str, against: str, found: Difference, tolerance: float, note: str = "") -> Result:
    """The line of a difference that nothing explains."""
    verdict: Verdict = "same" if found.first_step is None else "different"
    return Result(group, item, against, verdict, found.largest, tolerance, found.first_step, note)


def not_compared(group: str, item: str, against: str, reason: str) -> Result:
    """The line of an item that needs something that is not here."""
    return Result(group, item, against, "not compared", note=reason)
