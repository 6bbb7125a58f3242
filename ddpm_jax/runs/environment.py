"""What every part of a run was computed with: environment.jsonl, a line per start.

The same state goes on with the same bits only with the same versions and settings of JAX, on the same processor and
kind of device. Settings under which a run would be another one are refused.
"""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import flax
import jax

from ddpm_jax import keys
from ddpm_jax.host import processor
from ddpm_jax.host.storage import naming
from ddpm_jax.runs.checkpoint import RunInfo

PACKAGES = ("ddpm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
REQUIRED = {**keys.SETTINGS, "jax_enable_x64": False}
ROUNDING = ("jax_default_matmul_precision", "jax_disable_most_optimizations", "jax_accurate_erf_inv")
"""Settings of JAX, as far as a version has them, that change the last bits and nothing else."""


def check() -> None:
    """Whether JAX and Flax are set as all runs need them.

    Raises:
      ValueError: they are not; says the name of the variable.
    """
    keys.check(REQUIRED)
    if flax.config.flax_fix_rng_separator:
        raise ValueError("FLAX_FIX_RNG_SEPARATOR must be False, got True: a new network would be another under it")


def decisive(info: RunInfo) -> dict[str, Any]:
    """What a run is made of beside its configuration, by name, as JSON has it: its data, versions, settings of JAX.

    All processes of a run must have the same.
    """
    of_data: dict[str, Any] = {
        "image_shape of the data": list(info.image_shape),
        "num_examples of the data": info.num_examples,
    }
    if info.classes is not None:
        of_data["classes of the data"] = list(info.classes)
    contents = {f"fingerprint of the {name}s": value for name, value in info.fingerprint.items()}
    networks = {f"weights of the {name}": value for name, value in info.networks.items()}
    return {**of_data, **contents, **networks, **_versions(), **_settings()}


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _settings() -> dict[str, Any]:
    names = [name for name in (*REQUIRED, *ROUNDING) if name in jax.config.values]
    # Only what a context may change is an attribute, and only what none may change is in `read`.
    value = lambda name: getattr(jax.config, name) if hasattr(jax.config, name) else jax.config.read(name)
    return {"generator": keys.IMPLEMENTATION, **{name: value(name) for name in names}}


def record(workdir: Path, step: int, begun_from_step: int | None = None) -> None:
    """One line in environment.jsonl: versions, settings of JAX, git commit, processor, devices.

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
        "versions": _versions(),
        "settings": _settings(),
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


def _decides(line: str) -> dict[str, Any]:
    """Of one start; nothing of a line that a kill has cut."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return {}
    others = {"kind of device": values["devices"].partition(" x ")[2], "processor": values.get("processor")}
    known = {name: value for name, value in others.items() if value is not None}
    return {**values["versions"], **values.get("settings", {}), **known}


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
