"""The collectives of a compiled program, read from its HLO text."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

OPERATIONS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
# name = type operation(operands), attributes. An asynchronous one is a pair, -start and -done: the latter has the type
# of the result, the former the groups.
INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?(\S+) = (\S.*?) ({'|'.join(OPERATIONS)})(-start|-done)?\((.*)$", re.MULTILINE
)
NAME = re.compile(r"[\w.\-]+")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
# Where a computation of the text begins: its lines are indented, its head is not.
COMPUTATION = re.compile(r"^(?=(?:ENTRY )?%?[\w.\-]+ \()", re.MULTILINE)
# On TPUs a reduce-scatter is an all-reduce and a slice in one fused computation, which sends no more than the former.
FUSED_SCATTER = re.compile(r"%?all-reduce-scatter")
# Groups of chips: all of them, as {{0,1},{2,3}}; their number and size, as [8,4]<=[32]; or the axes of a mesh along
# which they lie, of which 'x':(2)4 is a part of size 4, as mesh['x'=8,'y'=4] {'y'}.
LISTED = re.compile(r"replica_groups=\{(\{[\d,]*\})?")
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{}]*\))? \{([^}]*)\}")
LENGTH = re.compile(r"'([^']+)'=(\d+)")
AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class Collective:
    """One exchange between chips.

    Attributes:
      operation: HLO's name of it.
      num_bytes: of the whole array that is reduced, gathered, scattered or sent, in each group.
      group_size: chips that take part together.
    """

    operation: str
    num_bytes: int
    group_size: int


def collectives(text: str, num_devices: int) -> list[Collective]:
    """Every collective of a program, in the order of its text; one inside a loop is counted once.

    Args:
      text: of `compiled.as_text()`.
      num_devices: that the program runs on.

    Raises:
      ValueError: text that is not understood.
    """
    found, seen = [], set()
    for computation in COMPUTATION.split(text):
        for one, channel in _of_computation(computation, num_devices):
            if FUSED_SCATTER.match(computation) and one.operation == "all-reduce":
                one = dataclasses.replace(one, operation="reduce-scatter")
            # On TPUs an asynchronous one is written in every fusion that it goes on beside, each time on its channel.
            if channel is None or (one, channel) not in seen:
                found.append(one)
                seen.add((one, channel))
    return found


def _of_computation(text: str, num_devices: int) -> Iterator[tuple[Collective, str | None]]:
    """Every collective, with its channel."""
    started: dict[str, str] = {}
    for name, shape, operation, part, rest in INSTRUCTION.findall(text):
        if part == "-start":
            started[name] = rest
            continue
        if part == "-done":
            rest = started[next(word for word in NAME.findall(rest) if word in started)]
        size = 2 if "permute" in operation else _group_size(rest, num_devices)
        whole = size if operation == "reduce-scatter" else 1  # its result is one chip's part
        channel = CHANNEL.search(rest)
        yield Collective(operation, whole * _num_bytes(shape), size), channel[1] if channel else None


def _group_size(attributes: str, num_devices: int) -> int:
    if match := IOTA.search(attributes):
        return int(match[2])
    if match := LISTED.search(attributes):
        return len(match[1].split(",")) if match[1] else num_devices  # {} is all of them
    if match := MESH.search(attributes):
        lengths = {name: int(length) for name, length in LENGTH.findall(match[1])}
        return math.prod(int(part) if part else lengths[name] for name, part in AXIS.findall(match[2]))
    raise ValueError(f"no replica_groups in the collective: {attributes[:200]}")


def _num_bytes(shape: str) -> int:
    """Bytes of the arrays in an HLO type, without the padding of their layout."""
    bits = 0
    for kind, lengths in ARRAY.findall(shape):
        size = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])  # bf16, f32, u8, f8e4m3fn
        bits += size * math.prod(int(length) for length in lengths.split(",") if length)
    return bits // 8
