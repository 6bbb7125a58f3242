"""Bounds on a program's time from what its chips can do at most.

time >= max(FLOPs / peak, bytes / bandwidth, communication), as if the three went on at once and at their peak. No
program reaches this; programs are compared by it, and it says which of the three to look at.

Source: Williams, Waterman, Patterson 2009, "Roofline: an insightful visual performance model" (doi
10.1145/1498765.1498785); for collectives, the bandwidth term of Chan et al. 2007, "Collective communication: theory,
practice, and experience" (doi 10.1002/cpe.1206), table 1: a chip sends at least (p - 1) / p of n bytes in a gather or a
scatter over p chips, and twice that in an all-reduce.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ddpm_jax.tools.plan.chips import Topology
from ddpm_jax.tools.plan.hlo import Collective


@dataclass(frozen=True)
class Roofline:
    """Least seconds that each of three resources needs."""

    compute: float
    memory: float
    communication: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.communication)

    @property
    def limit(self) -> str:
        """Which of them decides."""
        return max(("compute", "memory", "communication"), key=lambda name: getattr(self, name))


def roofline(flops: float, num_bytes: float, exchanged: Iterable[Collective], topology: Topology) -> Roofline:
    """(flops / peak, num_bytes / bandwidth, sum of sent bytes / links), all of one chip of the topology."""
    sent = sum(sent_bytes(collective) for collective in exchanged)
    chip = topology.chip
    return Roofline(flops / chip.flops, num_bytes / chip.hbm_bandwidth, sent / topology.egress if sent else 0.0)


def sent_bytes(collective: Collective) -> float:
    """Least bytes that a chip sends: 2 (p - 1) / p n for an all-reduce of n bytes over p chips, half for its halves."""
    p, n = collective.group_size, collective.num_bytes
    if collective.operation in ("collective-permute", "collective-broadcast"):
        return n if p > 1 else 0.0
    return (2 if collective.operation == "all-reduce" else 1) * (p - 1) / p * n
