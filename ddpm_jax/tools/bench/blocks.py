"""What a measurement is made of, as JSON and as numbers that a page shows.

A comparison keeps every single time: medians and ratios are computed from these wherever they are shown.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ddpm_jax.names import choose
from ddpm_jax.tools.bench.interleave import Spread, ratios, spread

PRODUCT = "matrix product"
"""The job that the speed of networks is set against, where a comparison has one."""


@dataclass(frozen=True)
class Comparison:
    """Times of several jobs that do the same.

    Attributes:
      title: what they do.
      reference: whose time the ratios divide by: ours.
      seconds: of every run, in the order of rounds.
      items: images, or whatever one run of a job makes.
      unit: what an item is.
      flops: 2 * multiplications of one run of a job, where it is counted.
      missing: jobs that were not measured, and why.
      note: what else there is to know.
    """

    title: str
    reference: str
    seconds: dict[str, list[float]]
    items: float = 1
    unit: str = "run"
    flops: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def time(self, name: str) -> Spread:
        """Seconds of one run."""
        return spread(self.seconds[name])

    def ratio(self, name: str, to: str | None = None) -> Spread:
        """Its time in units of the reference's, or of another job's, round by round."""
        return spread(ratios(self.seconds[name], self.seconds[self.reference if to is None else to]))

    def share_of_product(self, name: str) -> Spread | None:
        """Its FLOP/s in units of the matrix product's, round by round; None where either is not known."""
        if name == PRODUCT or name not in self.flops or PRODUCT not in self.seconds:
            return None
        work = self.flops[name] / self.flops[PRODUCT]
        return spread([work * value for value in ratios(self.seconds[PRODUCT], self.seconds[name])])


@dataclass(frozen=True)
class Facts:
    """A table."""

    title: str
    header: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines through points.

    Attributes:
      title: of the plot.
      x, y: what the axes are.
      lines: [[x, y], ...] by name.
      log: the axes that are logarithmic: "", "x", "y" or "xy".
      note: what else there is to know.
    """

    title: str
    x: str
    y: str
    lines: dict[str, list[list[float]]]
    log: str = ""
    note: str = ""


@dataclass(frozen=True)
class Missing:
    """What was not measured, and why."""

    title: str
    reasons: dict[str, str]


Block = Comparison | Facts | Curves | Missing
KINDS: dict[str, type[Block]] = {
    "comparison": Comparison,
    "facts": Facts,
    "curves": Curves,
    "missing": Missing,
}


def to_dict(block: Block) -> dict[str, Any]:
    """As JSON, with what follows from the times of a comparison beside them."""
    (kind,) = (name for name, cls in KINDS.items() if type(block) is cls)
    values = {"kind": kind, **dataclasses.asdict(block)}
    if isinstance(block, Comparison) and block.seconds:
        measured = block.reference in block.seconds
        values["computed"] = {
            name: {
                "seconds": dataclasses.asdict(block.time(name)),
                f"seconds / {block.reference}": dataclasses.asdict(block.ratio(name)) if measured else None,
            }
            for name in block.seconds
        }
    return values


def from_dict(values: dict[str, Any]) -> Block:
    """The block that to_dict wrote.

    Raises:
      ValueError: an unknown kind, or other fields.
    """
    cls = choose("kind of block", str(values.get("kind")), KINDS)
    names = {item.name for item in dataclasses.fields(cls)}
    wrong = names - values.keys() | values.keys() - names - {"kind", "computed"}
    if wrong:
        raise ValueError(f"a block {values['kind']!r} has the fields {sorted(names)}, got {sorted(values)}")
    return cls(**{name: values[name] for name in names})
