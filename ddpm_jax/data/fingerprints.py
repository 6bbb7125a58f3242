"""What records are, in a few digits: to see that data have not changed since something was computed from them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.records import Source

SAMPLE = 256
"""So many records are looked at where a set is decoded batch by batch."""
FILE, DIGITS, SHOWN = "file", 32, 8


def fingerprint(source: Source, features: Sequence[str], num_examples: int | None = None) -> dict[str, str]:
    """{feature: digits of a SHA-256}: the same of the same records, wherever they lie and however they were read.

    Of arrays in memory everything is in it. Of what is decoded batch by batch, SAMPLE records, evenly spread; and as
    "file" the names and the sizes of the files, where there are several.

    Args:
      source: of the records.
      features: which.
      num_examples: only the first so many records; all by default.
    """
    n = len(source) if num_examples is None else num_examples
    decoded = [name for name in features if name not in source.arrays]
    spread = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64))
    sample = source.read(spread, decoded) if decoded else {}
    found = {}
    for name in features:
        values = sample[name] if name in sample else source.arrays[name][:n]
        found[name] = _digits([n, source.spec[name].classes, values.dtype.str, values.shape], values)
    if decoded and source.files is not None:
        found[FILE] = _digits(sorted(source.files()))
    return found


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each feature that is another: "images of the data: fingerprint 01234567, now 89abcdef"."""
    shown = lambda found, name: found[name][:SHOWN] if name in found else "none"
    return [
        f"{name}s of the data: fingerprint {shown(before, name)}, now {shown(now, name)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def _digits(described: Any, values: np.ndarray | None = None) -> str:
    found = hashlib.sha256(json.dumps(described).encode())
    if values is not None:
        if values.dtype.hasobject:  # texts
            found.update(json.dumps(values.tolist()).encode())
        else:
            found.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:DIGITS]
