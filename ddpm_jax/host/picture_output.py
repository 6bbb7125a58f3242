"""Pictures that become files while they are drawn: a call that is stopped goes on, and what is finished is kept.

    FOLDER/          000000.png, 000001.png, ... as they are drawn
    FILE.npz, .png   FILE.parts/ holds a file for each batch until all are drawn; then FILE is written, and the parts go

While pictures are missing, drawing.json beside the parts says what they are drawn with: only the same goes on there. A
lock.json beside it keeps other calls away as long as one draws.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.host import lock, picture_files
from ddpm_jax.host.storage import Say, make_directory, replacing, write_atomically

RECORD = "drawing.json"
DIGITS = 6  # at least, of the numbers of pictures
ENDINGS = (".png", ".npz")


class Output:
    """Where the pictures of one call go, as `out` says: FILE.png, FILE.npz, or a folder.

    A folder is what ends in "/", is there already, or has no ending. Nothing is written yet.

    Raises:
      ValueError: another ending; a file that is there; a folder with other things than a part of some pictures.
      OSError: a place that cannot be written.
    """

    def __init__(self, out: str):
        self.path = Path(out)
        self.is_folder = out.endswith("/") or self.path.is_dir() or not self.path.suffix
        self.parts = self.path if self.is_folder else self.path.with_name(f"{self.path.name}.parts")
        if not self.is_folder and self.path.suffix not in ENDINGS:
            raise ValueError(f"unknown ending {self.path.suffix!r} of --out {out} (known: .png, .npz, and FOLDER/)")
        if self.is_folder and self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--out {self.path} is a file: allowed are a FOLDER/, FILE.png and FILE.npz")
        self.check()
        nearest = next(place for place in (self.parts, *self.parts.absolute().parents) if place.exists())
        try:
            tempfile.TemporaryFile(dir=nearest).close()
        except OSError as error:  # not with the name of that file, which nobody has typed
            raise OSError(error.errno, os.strerror(error.errno or 0), str(nearest)) from None

    def check(self) -> None:
        """Whether nothing is there that would be replaced.

        Raises:
          ValueError: there is.
        """
        if not self.is_folder and self.path.exists():
            raise ValueError(f"{self.path} is there already: choose another --out, or delete it")
        if self.is_folder and self.path.is_dir() and _holds_others(self.path):
            raise ValueError(f"the folder --out {self.path} is not empty: choose another one")

    @contextlib.contextmanager
    def alone(self, say: Say) -> Iterator[None]:
        """The place, where no other call draws until the block ends.

        Args:
          say: is told if it must be waited for whether a call on another machine still lives.

        Raises:
          ValueError: another call has drawn there since this was made.
          OSError: another call draws there, says which; a place that cannot be written.
        """
        self.check()
        make_directory(self.parts)
        try:
            with lock.held(self.parts, say):
                self.check()
                yield
        finally:
            if not self.is_folder:
                with contextlib.suppress(OSError):  # gone, or it holds a part of the pictures
                    self.parts.rmdir()


class Drawing:
    """The pictures of one call, num_images in batches of batch_size.

    Args:
      output: where they go.
      settings: what they are drawn with, by the names that a message has; JSON values.
      num_images: how many there will be.
      batch_size: of all batches but the last.

    Attributes:
      first: the pictures before this one are there; it begins a batch.
      not_finite: the numbers of the pictures so far that are not finite.

    Raises:
      ValueError: a part of pictures with other settings is there.
      OSError: a place that cannot be written.
    """

    def __init__(self, output: Output, settings: Mapping[str, Any], num_images: int, batch_size: int):
        self._output, self._num_images, self._batch_size = output, num_images, batch_size
        self._settings = json.loads(json.dumps(settings))
        self._digits = max(DIGITS, len(str(num_images - 1)))
        self._record = output.parts / RECORD
        self.not_finite: list[int] = self._known()
        make_directory(output.parts)
        self._write_record()
        self.first = next((first for first in self._batches() if not self._is_there(first)), num_images)

    def add(self, pictures: np.ndarray, not_finite: Sequence[int] = ()) -> None:
        """The next batch, uint8 [B, H, W, C], and the numbers of those in it that are not finite."""
        if not_finite:
            self.not_finite += [i for i in not_finite if i not in self.not_finite]
            self._write_record()
        parts = pictures if self._output.is_folder else [pictures]
        for path, picture in zip(self._files(self.first), parts, strict=True):
            if not _is_whole(path):
                _save_part(path, picture)
        self.first += len(pictures)

    def finish(self, labels: np.ndarray | None, columns: int | None = None) -> None:
        """All are drawn: the file appears, a PNG with so many columns, and what was needed to go on is removed."""
        path = self._output.path
        if self._output.is_folder:
            self._record.unlink()
            return
        if path.suffix == ".npz":
            picture_files.save_npz(path, self._parts, self._num_images, labels)
        else:
            picture_files.save_grid(path, np.concatenate(list(self._parts())), columns)
        shutil.rmtree(self._output.parts)

    def _known(self) -> list[int]:
        """What a call that was stopped has noted.

        Raises:
          ValueError: it has drawn with other settings.
        """
        if not self._record.exists():
            return []
        try:
            before = json.loads(self._record.read_text())
            settings, not_finite = before["settings"], before["not_finite"]
            names = [*self._settings, *(name for name in settings if name not in self._settings)]
            changed = [name for name in names if settings.get(name) != self._settings.get(name)]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._record} is not what was written ({error}): choose another --out") from None
        if changed:
            lines = [f"{name} {settings.get(name)}, now {self._settings.get(name)}" for name in changed]
            raise ValueError(
                f"{self._output.parts} holds a part of pictures that are drawn otherwise ({'; '.join(lines)}): "
                "choose another --out, or delete it"
            )
        return not_finite

    def _write_record(self) -> None:
        write_atomically(self._record, json.dumps({"settings": self._settings, "not_finite": self.not_finite}) + "\n")

    def _batches(self) -> range:
        return range(0, self._num_images, self._batch_size)

    def _files(self, first: int) -> list[Path]:
        """Of the batch that begins there."""
        last = min(first + self._batch_size, self._num_images)
        if not self._output.is_folder:
            return [self._output.parts / f"{first:0{self._digits}d}.npy"]
        return [self._output.parts / f"{i:0{self._digits}d}.png" for i in range(first, last)]

    def _is_there(self, first: int) -> bool:
        return all(_is_whole(path) for path in self._files(first))

    def _parts(self) -> Iterator[np.ndarray]:
        for first in self._batches():
            yield np.load(self._files(first)[0])


def _holds_others(folder: Path) -> bool:
    """Whether there is something in a folder that no call was stopped in."""
    names = {path.name for path in folder.iterdir()}
    return RECORD not in names and any(not name.startswith((f"{RECORD}.partial", lock.NAME)) for name in names)


def _is_whole(path: Path) -> bool:
    """Files appear when they are complete; only one without its bytes can be left by a machine that lost power."""
    return path.exists() and path.stat().st_size > 0


def _save_part(path: Path, pictures: np.ndarray) -> None:
    if path.suffix == ".png":
        return picture_files.save_png(path, pictures)
    with replacing(path) as file:
        np.save(file, pictures)
        file.flush()
        os.fsync(file.fileno())
