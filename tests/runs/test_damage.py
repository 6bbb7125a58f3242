"""A hundred damaged checkpoints: the last good one, bit for bit, and said; or one clear line."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.config.run import Config
from ddpm_jax.runs import checkpoint
from ddpm_jax.timesteps import TimestepSampler
from ddpm_jax.train.state import start

INFO = checkpoint.RunInfo(Config(), (8, 8, 1), 1797)
SAMPLER = TimestepSampler(init=lambda: (jnp.zeros((4, 2)), jnp.int32(3)), draw=None, update=None)


def state_at(step):
    """Everything a state can have; no two arrays alike, and no two steps."""
    params = {"conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)}, "out": {"kernel": jnp.zeros((8, 5))}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(1e-3)))
    leaves, tree = jax.tree.flatten(start(params, optimizer.init(params), SAMPLER.init()))
    keys = jax.random.split(jax.random.key(step), len(leaves))
    filled = [
        jax.random.normal(key, leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf + i
        for i, (key, leaf) in enumerate(zip(keys, leaves, strict=True))
    ]
    return dataclasses.replace(jax.tree.unflatten(tree, filled), step=jnp.int32(step))


def template():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    return jax.tree.map(place, jax.eval_shape(lambda: state_at(0)))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run with checkpoints 2 and 4, and what they hold."""
    workdir = tmp_path_factory.mktemp("good") / "run"
    checkpoint.open_run(workdir, INFO)
    states = {step: state_at(step) for step in (2, 4)}
    with checkpoint.checkpoints(workdir, keep=2) as saved:
        for state in states.values():
            saved.save(state)
    return workdir, {step: jax.tree.map(np.asarray, state) for step, state in states.items()}


def kinds(directory):
    """The files of a checkpoint by what they are: one name for all arrays of an item, one for each other file."""
    found = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        parts = path.relative_to(directory).parts
        found.setdefault("/".join(parts[:-1]) if parts[-2:-1] == ("d",) else "/".join(parts), []).append(path)
    return found


# -------------------------------------------------------------------------------------------------------------- harms


def truncate(path, random):
    content = path.read_bytes()
    path.write_bytes(content[: random.randint(max(1, len(content)))])


def flip_a_bit(path, random):
    content = bytearray(path.read_bytes())
    content[random.randint(len(content))] ^= 1 << random.randint(8)
    path.write_bytes(content)


def lose(path, random):
    path.unlink()


def blank(path, random):
    """What a file system may leave of a file after a power cut: its size, without its content."""
    path.write_bytes(bytes(path.stat().st_size))


def lengthen(path, random):
    path.write_bytes(path.read_bytes() + random.bytes(1 + random.randint(100)))


def replace_with_a_folder(path, random):
    path.unlink()
    path.mkdir()


def swap(path, random):
    """The content of another file of this run, if it is not the same."""
    before, root = path.read_bytes(), next(parent for parent in path.parents if parent.name == "run")
    others = [other for other in sorted(root.rglob("*")) if other.is_file() and other.read_bytes() != before]
    shutil.copyfile(others[random.randint(len(others))], path)


HARMS = (truncate, flip_a_bit, lose, blank, lengthen, replace_with_a_folder, swap)

WHOLE = {
    "an empty directory": lambda path: (shutil.rmtree(path), path.mkdir()),
    "a file": lambda path: (shutil.rmtree(path), path.write_text("4")),
    "a link to nowhere": lambda path: (shutil.rmtree(path), path.symlink_to("nowhere")),
    "the parameters gone": lambda path: shutil.rmtree(path / "params"),
    "the optimizer emptied": lambda path: (shutil.rmtree(path / "opt_state"), (path / "opt_state").mkdir()),
    "an item that is a file": lambda path: (shutil.rmtree(path / "params"), (path / "params").write_text("")),
    "only the seal": lambda path: [shutil.rmtree(item) for item in path.iterdir() if item.is_dir()],
    "a seal of nothing": lambda path: (path / "seal.json").write_text("{}"),
    "a seal that is a list": lambda path: (path / "seal.json").write_text("[]"),
    "a seal that is a number": lambda path: (path / "seal.json").write_text("3"),
    "a seal without sizes": lambda path: (path / "seal.json").write_text('{"params/_METADATA": 3}'),
    "a seal of words": lambda path: (path / "seal.json").write_text('{"params/_METADATA": ["a", "b"]}'),
    "a seal in another encoding": lambda path: (path / "seal.json").write_bytes(b"\xff\xfe{\x00}\x00"),
}


def outcome(workdir, states):
    """ "newest" | "fell back": which of its checkpoints was restored, bit for bit, and what was said."""
    said = []
    with checkpoint.checkpoints(workdir) as saved:
        found = saved.restore(template(), said.append)
    assert found is not None, "begun anew without a word"
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, found), states[int(found.step)])
    if int(found.step) == 4:
        assert said == []
        return "newest"
    assert len(said) == 1 and said[0].startswith("checkpoint 4 is damaged (") and "going on from 2" in said[0]
    assert "\n" not in said[0] and (workdir / "damaged" / "4").is_symlink() | (workdir / "damaged" / "4").exists()
    return "fell back"


def test_a_hundred_damaged_checkpoints(good, tmp_path):
    """Every kind of file in turn, harmed in every way in turn, at a place that is drawn."""
    source, states = good
    random, seen = np.random.RandomState(0), {"newest": [], "fell back": []}
    names = sorted(kinds(source / "checkpoints" / "4"))
    assert {"seal.json", "_CHECKPOINT_METADATA", "params/_METADATA", "opt_state/d", "params/manifest.ocdbt"} < set(
        names
    )
    rounds = range(-(-100 // len(names)))
    pairs = [(name, HARMS[(i + j) % len(HARMS)]) for j in rounds for i, name in enumerate(names)]
    assert len(pairs) >= 100 and {name for name, _ in pairs} == set(names)
    for case, (name, harm) in enumerate(pairs):
        workdir = tmp_path / str(case) / "run"
        shutil.copytree(source, workdir)
        paths = kinds(workdir / "checkpoints" / "4")[name]
        harm(paths[random.randint(len(paths))], random)
        seen[outcome(workdir, states)].append((name, harm.__name__))
        shutil.rmtree(workdir)
    # What Orbax notes beside the items is not needed, and there a swap or a flip may leave what means the same.
    assert {name for name, _ in seen["newest"]} <= {"_CHECKPOINT_METADATA", "commit_success.txt"}
    assert len(seen["fell back"]) >= 95


@pytest.mark.parametrize("name", WHOLE)
def test_a_checkpoint_that_is_no_longer_one(good, tmp_path, name):
    source, states = good
    shutil.copytree(source, tmp_path / "run")
    WHOLE[name](tmp_path / "run" / "checkpoints" / "4")
    assert outcome(tmp_path / "run", states) == "fell back"


def test_all_of_them_damaged(good, tmp_path):
    """An error of one line that lists them, and nothing is moved."""
    source, _ = good
    random = np.random.RandomState(1)
    names = [name for name in kinds(source / "checkpoints" / "4") if "/" in name]
    for case, harm in enumerate(HARMS):
        workdir = tmp_path / str(case) / "run"
        shutil.copytree(source, workdir)
        for step in (2, 4):
            paths = kinds(workdir / "checkpoints" / str(step))[names[random.randint(len(names))]]
            harm(paths[0], random)
        before = sorted(workdir.rglob("*"))
        with checkpoint.checkpoints(workdir) as saved, pytest.raises(ValueError) as error:
            saved.restore(template(), pytest.fail)
        assert "\n" not in str(error.value)
        assert f"every checkpoint in {workdir / 'checkpoints'} is damaged (4: " in str(error.value)
        assert "; 2: " in str(error.value) and sorted(workdir.rglob("*")) == before


def test_a_damaged_configuration(good, tmp_path):
    """It is refused in one line, unless what is left says the same run; checkpoints stay as they are."""
    source, _ = good
    random, refused = np.random.RandomState(2), 0
    for case in range(60):
        workdir = tmp_path / str(case) / "run"
        shutil.copytree(source, workdir)
        HARMS[case % len(HARMS)](workdir / "config.json", random)
        try:
            checkpoint.open_run(workdir, INFO)
        except (ValueError, OSError) as error:
            assert str(workdir) in str(error)
            refused += 1
        else:
            written = json.loads((workdir / "config.json").read_text())
            assert written == json.loads((source / "config.json").read_text())
        assert kinds(workdir / "checkpoints").keys() == kinds(source / "checkpoints").keys()
    assert refused >= 50
