"""A run's directory while somebody trains there: one at a time, and without what an end has left unfinished."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ddpm_jax.host import lock
from ddpm_jax.host.storage import Say, make_directory
from ddpm_jax.runs import checkpoint

UNFINISHED = ("config.json.partial", "first_stage.safetensors.partial",
              "metrics.jsonl.partial", "samples.png.partial", "samples/*.partial",
              "averages/*.partial")  # fmt: skip
"""What a kill or a full disk can leave of what a training writes; of a checkpoint, Orbax knows."""


@contextlib.contextmanager
def occupied(workdir: Path, info: checkpoint.RunInfo, say: Say) -> Iterator[lock.Lock]:
    """The run's directory, made or checked as by checkpoint.open_run, in which no other process trains meanwhile.

    Raises:
      ValueError: as checkpoint.open_run.
      OSError: another process trains there; says which.
    """
    checkpoint.check_run(workdir, info)  # before anything is written into the directory of somebody else
    make_directory(workdir)
    with lock.held(workdir, say) as mine:
        _clear(workdir)
        checkpoint.open_run(workdir, info)
        yield mine


def _clear(workdir: Path) -> None:
    """Remove what was not finished."""
    for path in (path for pattern in UNFINISHED for path in workdir.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
