"""What something was measured on: processor, memory, accelerators, versions, flags, how busy it was."""

import datetime
import importlib.metadata
import os
import platform
from typing import Any

import jax

from ddpm_jax.host import processor

PACKAGES = ("ddpm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "diffusers")
FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "OMP_NUM_THREADS", "TORCHINDUCTOR_MAX_AUTOTUNE")


def description() -> dict[str, Any]:
    """As JSON. The accelerators are those of JAX."""
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor.name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "load_average": list(os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "devices": f"{len(devices)} x {devices[0].platform} {devices[0].device_kind}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in FLAGS if name in os.environ},
    }


def version(name: str) -> str | None:
    """Of an installed package; None if it is not. Of a plain checkout only the others are known."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def sentence(machine: dict[str, Any]) -> str:
    """In one line, without date and load."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value is not None)
    flags = "".join(f", {name}={value}" for name, value in machine["environment"].items())
    memory = machine["memory_gib"]
    return (
        f"{machine['cores']} cores ({machine['processor']})"
        + ("" if memory is None else f", {memory:.0f} GiB")
        + f"; {machine['devices']}; {machine['system']}; Python {machine['python']}, {versions}{flags}"
    )


def _memory_gib() -> float | None:
    """None where the system does not say it this way."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
