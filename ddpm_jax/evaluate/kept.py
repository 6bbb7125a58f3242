"""Features of pictures in files, block after block: a call that is stopped goes on after the last whole block.

    FOLDER/kept.json         what they are of, by the names that a message has; JSON values
    FOLDER/000000.npz, ...   float32 [BLOCK, D] of each output, of the last block what is left

Blocks begin at the multiples of BLOCK whatever batches the features come in. A block appears whole, and its archive
has the CRC-32 of every array: one that is damaged is made again, with those after it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.arrays import UNREADABLE
from ddpm_jax.host import lock
from ddpm_jax.host.storage import Say, make_directory, replacing, write_atomically

BLOCK = 128
RECORD = "kept.json"
DIGITS = 6  # at least, of the numbers of pictures


class Held(NamedTuple):
    """Features in memory: float32 [N, D] of each output; what metrics read of a Kept."""

    arrays: Mapping[str, np.ndarray]

    @property
    def sizes(self) -> dict[str, int]:
        """D of each output."""
        return {output: array.shape[1] for output, array in self.arrays.items()}

    def blocks(self, output: str) -> Iterator[np.ndarray]:
        """All in one."""
        yield self.arrays[output]

    def all(self, output: str) -> np.ndarray:
        """float32 [N, D]."""
        return self.arrays[output]


class Kept:
    """The features of num_images pictures, as far as they are there.

    Args:
      folder: where they are, new or of this class.
      settings: all that their bits depend on.
      num_images: N.
      sizes: D of each output that is wanted.
      say: is told of damaged blocks, and of outputs that are not among those that are there.

    Attributes:
      sizes: D of each output that is kept: those that are wanted, and what was kept before.
      first: the features of the pictures before this one are there; a multiple of BLOCK, or N.

    Raises:
      ValueError: features of other settings are there; other files.
      OSError: a place that cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], num_images: int, sizes: Mapping[str, int], say: Say):
        self.folder, self.num_images = folder, num_images
        self._digits = max(DIGITS, len(str(num_images - 1)))
        self._record = folder / RECORD
        now = json.loads(json.dumps({**settings, "num_images": num_images}))
        before = self._known(now)
        self.sizes = {**before, **sizes}
        if before != self.sizes:
            if lacking := [output for output in sizes if before and output not in before]:
                say(f"{folder} has no features {', '.join(lacking)}: all are made again")
            self._remove_blocks()
            write_atomically(self._record, json.dumps({"settings": now, "outputs": self.sizes}, indent=2) + "\n")
        self._waiting: dict[str, list[np.ndarray]] = {output: [] for output in self.sizes}
        self.first = self._count(say)
        self.made = self.first
        """With those that wait for their block to be full."""

    def add(self, features: Mapping[str, np.ndarray]) -> None:
        """The next pictures' features, [n, D] of each output.

        Raises:
          FloatingPointError: one that is not finite; names the picture.
        """
        for output, rows in features.items():
            if len(wrong := np.flatnonzero(~np.isfinite(rows).all(axis=1))):
                raise FloatingPointError(
                    f"the {output} features of {len(wrong)} of {len(rows)} pictures have NaN or infinity, first "
                    f"picture {self.made + wrong[0]}: numbers in the feature network overflow"
                )
            self._waiting[output].append(np.asarray(rows, np.float32))
        self.made += len(next(iter(features.values())))
        while self.made - self.first >= BLOCK or (self.made == self.num_images > self.first):
            self._write(min(BLOCK, self.made - self.first))

    def blocks(self, output: str) -> Iterator[np.ndarray]:
        """float32 [BLOCK, D] after another, in the order of the pictures."""
        for first in range(0, self.num_images, BLOCK):
            with np.load(self._path(first)) as file:
                yield file[output]

    def all(self, output: str) -> np.ndarray:
        """float32 [N, D]."""
        return np.concatenate(list(self.blocks(output)))

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:0{self._digits}d}.npz"

    def _remove_blocks(self) -> None:
        for first in range(0, self.num_images, BLOCK):
            self._path(first).unlink(missing_ok=True)

    def _known(self, settings: dict[str, Any]) -> dict[str, int]:
        """D of each output that is kept there; empty in a new folder."""
        if not self._record.exists():
            if self.folder.exists() and any(_is_foreign(path.name) for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} exists and has no {RECORD}: move it, or choose another place")
            make_directory(self.folder)
            return {}
        try:
            found = json.loads(self._record.read_text())
            before, outputs = found["settings"], {str(name): int(size) for name, size in found["outputs"].items()}
            names = [name for name in before | settings if before.get(name) != settings.get(name)]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._record} is not what was written ({error}): delete {self.folder}") from None
        if names:
            changed = "; ".join(f"{name} {before.get(name)}, now {settings.get(name)}" for name in names)
            raise ValueError(f"{self.folder} has features of other settings ({changed}): delete it")
        return outputs

    def _count(self, say: Say) -> int:
        """The pictures in whole blocks from the first on."""
        for first in range(0, self.num_images, BLOCK):
            path = self._path(first)
            if not path.exists():
                return first
            rows = min(BLOCK, self.num_images - first)
            try:
                with np.load(path) as file:
                    found = {output: file[output].shape for output in file.files}  # which reads the CRC-32 as well
            except UNREADABLE as error:
                say(f"{path} is damaged ({error}): it is made again")
                return first
            if found != {output: (rows, size) for output, size in self.sizes.items()}:
                say(f"{path} is not what was written, with arrays {found}: it is made again")
                return first
        return self.num_images

    def _write(self, rows: int) -> None:
        block = {}
        for output, parts in self._waiting.items():
            joined = np.concatenate(parts)
            block[output], self._waiting[output] = joined[:rows], [joined[rows:]]
        with replacing(self._path(self.first)) as file:
            np.savez(file, **block)
            file.flush()
            os.fsync(file.fileno())
        self.first += rows


def _is_foreign(name: str) -> bool:
    """Whether a file is none of those that a call which was stopped before its record leaves."""
    return not name.startswith((f"{RECORD}.partial", lock.NAME))
