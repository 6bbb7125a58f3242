"""What every part of a run was computed with: environment.jsonl, a line per start.

The same state goes on with the same bits only with the same versions, on the same processor and kind of device.
"""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import jax

from ddpm_jax.host import processor
from ddpm_jax.host.storage import naming

PACKAGES = ("ddpm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def record(workdir: Path, step: int, begun_from_step: int | None = None) -> None:
    """One line in environment.jsonl: versions, git commit, processor, devices.

    Args:
      step: from which the run goes on.
      begun_from_step: of the other run, where this one begins with what that has learned.
    """
    devices = jax.devices()
    line = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "from_step": step,
        **({} if begun_from_step is None else {"begun_from_step": begun_from_step}),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "processor": processor.name(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
    }
    path = workdir / "environment.jsonl"
    with naming(path), open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def changes(workdir: Path) -> list[str]:
    """What the last start has otherwise than the one before, of what bits depend on: "jax 0.10.0, now 0.10.2"."""
    path = workdir / "environment.jsonl"
    with naming(path):
        starts = [_decides(line) for line in path.read_text().splitlines()]
    if len(starts) < 2:
        return []
    before, now = starts[-2:]
    return [f"{name} {before[name]}, now {now[name]}" for name in before if before[name] != now.get(name, before[name])]


def _decides(line: str) -> dict[str, str]:
    """Of one start; nothing of a line that a kill has cut."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return {}
    others = {"kind of device": values["devices"].partition(" x ")[2], "processor": values.get("processor")}
    return values["versions"] | {name: value for name, value in others.items() if value is not None}


def _git_commit() -> str | None:
    """The commit of this package's source tree, with "+" if files differ from it; None outside a git tree.

    Without optional locks: a run that is killed here must not leave index.lock in the tree.
    """
    git = lambda *args: subprocess.run(
        ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *args],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
