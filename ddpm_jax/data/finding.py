"""Which pictures lie below a folder, and what is left out of account there and why."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ddpm_jax.data import metadata

USUAL = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif")
NO_ENDING = "without an ending"
MOST_ENDINGS = 5  # told apart in the line about what is left out


@cache
def endings() -> frozenset[str]:
    """Of the files that the installed Pillow reads, not of those that it writes only, or knows but cannot decode."""
    from PIL import EpsImagePlugin, Image, ImageFile

    Image.init()
    stubs = {name for name, (factory, _) in Image.OPEN.items()
             if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)}  # fmt: skip
    readable = {*Image.OPEN, "MPO"} - stubs - {"MPEG"}  # an MPO is opened as a JPEG; of an MPEG only the size is read
    if not EpsImagePlugin.has_ghostscript():
        readable.discard("EPS")
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in readable)


class Finder:
    """The pictures below a folder at any depth, every one once.

    Hidden files and folders (".x") are left out. Links are followed; where a picture or a folder can be reached in
    several ways, the way without links counts, else the first one. A link to a folder that it lies in is none.

    Attributes:
      files: by their real path.
      metadata: files that say something of the pictures, sorted.
      left_out: how many of what.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.metadata: list[Path] = []
        self.left_out: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._links: list[Path] = []
        self._walk(folder)
        while self._links:
            # Those that were found behind a link come after all that were not.
            links, self._links = self._links, []
            for link in sorted(links, key=self.name):
                self._follow(link)
        self.metadata.sort(key=self.name)

    def name(self, path: Path) -> str:
        """Relative to the folder, with slashes."""
        return path.relative_to(self.folder).as_posix()

    def sorted_files(self) -> list[Path]:
        """In the order of their relative paths."""
        return sorted(self.files.values(), key=self.name)

    def _walk(self, start: Path) -> None:
        folders = [start]
        while folders:
            folder = folders.pop()
            real = os.path.realpath(folder)
            if real in self._seen:
                self.left_out["link to what is there already"] += 1
                continue
            self._seen.add(real)
            for entry in self._entries(folder):
                if entry.name.startswith("."):
                    self.left_out["hidden folder" if entry.is_dir() else "hidden file"] += 1
                elif entry.is_symlink():
                    self._links.append(Path(entry.path))
                elif entry.is_dir():
                    folders.append(Path(entry.path))
                else:
                    self._add(Path(entry.path), os.path.join(real, entry.name))

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                yield from entries
        except PermissionError:
            self.left_out["folder that may not be opened"] += 1

    def _follow(self, link: Path) -> None:
        real = os.path.realpath(link)
        if not os.path.exists(real) and link.suffix.lower() not in endings():
            self.left_out["link to nothing"] += 1
        elif not os.path.isdir(real):
            self._add(link, real)
        elif Path(os.path.realpath(link.parent)).is_relative_to(real):
            self.left_out["link to a folder that it lies in"] += 1
        else:
            self._walk(link)

    def _add(self, path: Path, real: str) -> None:
        ending = path.suffix.lower()
        if path.name in metadata.NAMES and os.path.isfile(real):
            self.metadata.append(path)
        elif ending not in endings():
            self.left_out[ending or NO_ENDING] += 1
        elif real in self.files:
            self.left_out["link to what is there already"] += 1
        elif os.path.exists(real) and not os.path.isfile(real):  # a link to nothing is for its reader to name
            self.left_out["device or pipe"] += 1
        else:
            self.files[real] = path

    def said(self) -> str:
        """What is left out, in words; empty if nothing is."""
        counts = sorted(self.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
        by_ending = [(what, n) for what, n in counts if what.startswith(".") or what == NO_ENDING]
        words = [f"{n} {what}" for what, n in by_ending[:MOST_ENDINGS]]
        if others := sum(n for _, n in by_ending[MOST_ENDINGS:]):
            words.append(f"{others} others")
        parts = [f"{', '.join(words)} (not read by Pillow)"] if words else []
        return ", ".join(parts + [f"{n} {_plural(what, n)}" for what, n in counts if (what, n) not in by_ending])


def _plural(what: str, n: int) -> str:
    noun = what if what.startswith("hidden") else what.split(" ")[0]
    return what if n == 1 else noun + "s" + what.removeprefix(noun)
