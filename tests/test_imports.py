"""Imports only point left: schedules, process, objectives, train, checkpoint, samplers, guidance, cli."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpm_jax"

# What a part may import of the rest of the package. A longer name wins over a shorter one.
ALLOWED = {
    "names": set(),
    "lfs": set(),
    "images": set(),
    "keys": set(),
    "storage": set(),
    "report": set(),
    "pictures": {"images", "storage"},
    "bars": {"processes"},
    "timesteps": {"names", "schedules"},
    "schedules": {"names"},
    "process": {"names", "schedules"},
    "binomial": {"keys", "process", "schedules"},
    "gaussians": set(),
    "edm": {"process"},
    "objectives": {"gaussians", "process", "schedules"},
    "weightings": {"names", "process", "schedules"},
    "samplers": {"keys", "lfs", "names", "process", "schedules", "edm", "samplers"},
    "guidance": {"process", "samplers"},
    "models": {"models", "names"},
    "data": {"data", "lfs", "names"},
    "interop": {"models", "names", "process", "samplers", "schedules", "interop"},
    "train": {
        *("names", "images", "timesteps", "schedules", "process", "objectives", "weightings", "samplers", "models"),
        *("storage", "train"),
    },
    "train.begin": {"checkpoint", "train"},
    "train.loop": {
        *("images", "timesteps", "samplers", "models", "train", "data", "checkpoint", "pictures", "posthoc"),
        *("processes", "storage"),
    },
    "sealing": {"storage"},
    "checkpoint": {"train", "processes", "storage", "sealing"},
    "posthoc": {"names", "checkpoint", "train", "processes", "sealing"},
    "evaluate": {"keys", "names", "objectives", "process", "samplers", "schedules", "evaluate"},
    "evaluate.files": {"checkpoint", "storage", "data", "evaluate"},
    "evaluate.nll": {"checkpoint", "data", "images", "models", "process", "samplers", "schedules", "train", "evaluate"},
    "export": {"checkpoint", "posthoc", "interop", "train"},
    "drawing": {
        *("images", "schedules", "process", "samplers", "guidance", "models", "checkpoint", "posthoc", "train"),
        *("interop", "learn"),
    },
    "learn": {"names", "samplers", "schedules", "learn"},
    "learn.files": {"storage", "samplers", "schedules", "train", "learn"},
    "learn.command": {"checkpoint", "drawing", "samplers", "schedules", "train", "learn"},
    "plan": {"names", "data", "samplers", "train", "plan"},
    "parity": {
        *("names", "schedules", "process", "processes", "objectives", "samplers", "models", "interop", "train"),
        *("checkpoint", "storage", "report", "edm", "weightings", "guidance", "evaluate", "parity"),
    },
    "bench": {
        *("names", "images", "schedules", "samplers", "models", "interop", "train", "data", "checkpoint", "drawing"),
        *("storage", "report", "bench"),
    },
    "cli": {
        *("names", "bars", "data", "train", "samplers", "evaluate", "drawing", "export", "interop", "parity", "plan"),
        *("bench", "learn", "pictures", "posthoc", "processes", "quiet"),
    },
    "quiet": set(),
    "processes": set(),
    "__init__": set(),
}
# Third-party packages a part must not see.
FORBIDDEN = {
    "schedules": {"flax", "optax", "orbax"},
    "process": {"flax", "optax", "orbax"},
    "gaussians": {"flax", "optax", "orbax"},
    "edm": {"flax", "optax", "orbax"},
    "objectives": {"flax", "optax", "orbax"},
    "weightings": {"flax", "optax", "orbax"},
    "timesteps": {"flax", "optax", "orbax"},
    "binomial": {"flax", "optax", "orbax"},
    "samplers": {"flax", "optax", "orbax"},
    "guidance": {"flax", "optax", "orbax"},
    "evaluate": {"flax", "optax", "orbax"},
    "data": {"jax", "flax", "optax", "orbax"},
    "processes": {"flax", "optax", "orbax"},
}


def imports(path: Path) -> set[str]:
    package = "ddpm_jax." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"{package.rstrip('.')}.{node.module}" if node.level else node.module
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def part(name: str, table) -> str:
    """The longest key of the table that `name` lies in."""
    return max((key for key in table if name == key or name.startswith(key + ".")), key=len, default="")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_left(path):
    here = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    allowed = ALLOWED[part(here, ALLOWED)]
    for name in imports(path):
        root = name.split(".")[0]
        if root == "ddpm_jax":
            target = name.removeprefix("ddpm_jax.").split(".")[0]
            assert target in allowed, f"{here} must not import {name}"
        assert root not in FORBIDDEN.get(part(here, FORBIDDEN), set()), f"{here} must not import {name}"
        assert root not in ("torch", "tensorflow"), f"{here} imports {name}"


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not prints or path.name == "cli.py", path


def test_the_core_is_light():
    """Schedules, process and samplers without Flax, optax, Orbax or TFDS; no torch, no TensorFlow anywhere."""
    heavy = "{'flax', 'optax', 'orbax', 'tensorflow_datasets', 'torch', 'tensorflow'}"
    code = f"import sys, ddpm_jax.samplers, ddpm_jax.objectives, ddpm_jax.evaluate; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
    code = "import sys, ddpm_jax.cli; print({'torch', 'tensorflow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
