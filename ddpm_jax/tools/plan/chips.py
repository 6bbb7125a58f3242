"""Peak rates of TPU chips, and the slices they come in.

The numbers are those of Google's public pages, as they stood in November 2026. A page gives the interconnect of a chip
in both directions together; a link's one-way rate is half of that over the number of links, two per axis of the torus.
Which slices close into rings is assumed: those axes whose length is a multiple of `ring`. The v4 page says so of its
tori, with 4; v5e and v6e, whose pages name the 16x16 pod as their torus, are taken to have rings of 16.
"""

import math
import re
from dataclasses import dataclass

from ddpm_jax.names import choose

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peak rates of one chip.

    Attributes:
      flops: bfloat16 FLOP/s; float32 programs use the same units at JAX's default precision.
      hbm_bytes: memory; programs get a little less.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s that one link carries in one direction.
      num_axes: of the torus; a chip has at most two links on each.
      ring: an axis whose length is a multiple of this is closed to a ring.
      source: where the numbers are from.
    """

    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    num_axes: int
    ring: int
    source: str


CHIPS = {
    # No rate per link on the page: all-reduce bandwidth of a pod, 1.1 PB/s, over 4096 chips and 6 links.
    "v4": Chip(275e12, 32 * GIB, 1200e9, 1.1e15 / 4096 / 6, 3, 4, "https://docs.cloud.google.com/tpu/docs/v4"),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 400e9 / 2 / 4, 2, 16, "https://docs.cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 1200e9 / 2 / 6, 3, 4, "https://docs.cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 800e9 / 2 / 4, 2, 16, "https://docs.cloud.google.com/tpu/docs/v6e"),
}


@dataclass(frozen=True)
class Topology:
    """A slice of a pod, such as v5e:4x8."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def egress(self) -> float:
        """Bytes/s that the chip with the fewest links can send: one link per axis, two where the axis is a ring."""
        links = sum(0 if length == 1 else 2 if length % self.chip.ring == 0 else 1 for length in self.shape)
        return links * self.chip.link_bandwidth


def parse(name: str) -> Topology:
    """The slice called `name`, CHIP:AxB or CHIP:AxBxC. Whether it can be had, the compiler knows.

    Raises:
      ValueError: not such a name, an unknown chip, or another number of lengths than the chip's torus has axes.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None:
        raise ValueError(f"topology must be a chip and the lengths of a slice, such as v5e:4x8, got {name!r}")
    chip = choose("chip of a topology", match[1], CHIPS)
    shape = tuple(int(length) for length in match[2].split("x"))
    if len(shape) != chip.num_axes or 0 in shape:
        form = "x".join("ABC"[: chip.num_axes])
        raise ValueError(f"topology {name!r} must have the form {match[1]}:{form}, with lengths of at least 1")
    return Topology(name, chip, shape)
