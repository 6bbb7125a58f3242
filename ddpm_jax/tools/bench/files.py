"""The files of measurements: one JSON file each, and one page of all."""

import json
from pathlib import Path
from typing import Any

from ddpm_jax.host.storage import write_atomically
from ddpm_jax.tools.bench import blocks
from ddpm_jax.tools.bench.page import page

FORMAT = "ddpm-jax bench 1"
PAGE = "bench.html"
FIELDS = ("part", "label", "command", "machine", "blocks")


def read(folder: Path) -> list[dict[str, Any]]:
    """All measurements of a folder with their blocks, in the order of their names; other files are left alone.

    Raises:
      ValueError: a file that says it is a measurement, but cannot be read.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            continue
        if missing := [name for name in FIELDS if name not in content]:
            raise ValueError(f"{path} says it is a measurement, but has no {', '.join(missing)}")
        try:
            found.append(content | {"blocks": [blocks.from_dict(block) for block in content["blocks"]]})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return found


def page_of(folder: Path) -> Path:
    """Where the page of a folder is, or will be.

    Raises:
      FileExistsError: a file of that name that is not such a page.
    """
    path = folder / PAGE
    if path.exists() and "<title>ddpm-jax bench</title>" not in path.read_text()[:1000]:
        raise FileExistsError(f"{path} exists and is no page of this command; choose another --out")
    return path


def write_page(folder: Path) -> Path:
    """The page of all measurements of a folder, made anew.

    Raises:
      FileNotFoundError: there are no measurements.
      FileExistsError: as `page_of`.
    """
    measurements, path = read(folder), page_of(folder)
    if not measurements:
        raise FileNotFoundError(f"no measurements in {folder}")
    write_atomically(path, page(measurements))
    return path
