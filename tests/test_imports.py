"""Imports only point left: schedules, process, objectives, train, checkpoint, samplers, guidance, cli."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpm_jax"

# A part may import those before it, and itself.
ORDER = [
    *("names", "keys", "images", "schedules", "process", "special", "edm", "objectives", "weightings", "timesteps"),
    *("host", "samplers", "reading", "guidance", "models", "first_stage", "conditions", "data", "config", "trained"),
    *("build", "runs", "noisy_classifier", "interop", "opening", "distil", "guided", "pictures", "uses", "evaluate"),
    *("train", "tools", "cli"),
]
# Third-party packages a part must not see.
FORBIDDEN = {
    "schedules": {"flax", "optax", "orbax"},
    "process": {"flax", "optax", "orbax"},
    "special": {"flax", "optax", "orbax"},
    "objectives": {"flax", "optax", "orbax"},
    "weightings": {"flax", "optax", "orbax"},
    "timesteps": {"flax", "optax", "orbax"},
    "samplers": {"flax", "optax", "orbax"},
    "reading": {"flax", "optax", "orbax"},
    "guidance": {"flax", "optax", "orbax"},
    "evaluate": {"flax", "optax", "orbax"},
    "data": {"jax", "flax", "optax", "orbax"},
    "host": {"flax", "optax", "orbax"},
    "config": {"flax", "optax", "orbax"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_part_has_its_place():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_left(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    before = ORDER[: ORDER.index(here) + 1] if here in ORDER else []
    for name in imports(path):
        root = name.split(".")[0]
        if root == "ddpm_jax":
            assert name.split(".")[1] in before, f"{path} must not import {name}"
        assert root not in FORBIDDEN.get(here, set()), f"{path} must not import {name}"
        assert root not in ("torch", "tensorflow"), f"{path} imports {name}"


OF_THE_LOOP = ["loop", "step", "mesh", "accumulation", "state", "task", "guards", "begin", "ema", "due"]


@pytest.mark.parametrize("name", OF_THE_LOOP)
def test_the_training_loop_knows_nothing_of_diffusion(name):
    diffusion = {"build", "conditions", "models", "objectives", "process", "samplers", "schedules", "timesteps"}
    found = imports(PACKAGE / "train" / f"{name}.py")
    assert not {part.split(".")[1] for part in found if part.startswith("ddpm_jax.")} & diffusion
    assert not any(part.startswith("ddpm_jax.train.tasks.") for part in found)


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not prints or path.parent.name == "cli", path


def test_the_core_is_light():
    """Schedules, process and samplers without Flax, optax, Orbax or TFDS; no torch, no TensorFlow anywhere."""
    heavy = "{'flax', 'optax', 'orbax', 'tensorflow_datasets', 'torch', 'tensorflow'}"
    code = f"import sys, ddpm_jax.samplers, ddpm_jax.objectives, ddpm_jax.evaluate; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
    code = "import sys, ddpm_jax.cli; print({'torch', 'tensorflow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
