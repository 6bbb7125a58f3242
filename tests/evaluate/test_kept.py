"""Features in files: the same blocks from any batches, and what is done about a stop, other settings and damage."""

import numpy as np
import pytest

from ddpm_jax.evaluate.kept import BLOCK, RECORD, Kept

N = 2 * BLOCK + 7
SIZES = {"a": 3, "b": 1}
FEATURES = {name: np.random.RandomState(1).randn(N, size).astype(np.float32) for name, size in SIZES.items()}


def fail(message):
    raise AssertionError(message)


def kept(folder, say=fail, settings=None, sizes=None):
    return Kept(folder, settings or {"seed": 0}, N, sizes or SIZES, say)


def fill(found, batch_size, stop=N):
    for first in range(found.first, stop, batch_size):
        found.add({name: rows[first : min(first + batch_size, stop)] for name, rows in FEATURES.items()})
    return found


@pytest.mark.parametrize("batch_size", [1, 200, BLOCK, 3 * BLOCK])
def test_blocks_do_not_depend_on_batches(tmp_path, batch_size):
    found = fill(kept(tmp_path), batch_size)
    assert found.first == N and len(list(tmp_path.iterdir())) == 4
    assert [len(block) for block in found.blocks("a")] == [BLOCK, BLOCK, 7]
    for name in SIZES:
        np.testing.assert_array_equal(found.all(name), FEATURES[name])


def test_a_stopped_call_goes_on(tmp_path):
    """After the last whole block; rows that waited for theirs are made again."""
    fill(kept(tmp_path), 100, stop=2 * BLOCK - 1)
    found = kept(tmp_path)
    assert found.first == BLOCK
    np.testing.assert_array_equal(fill(found, 33).all("b"), FEATURES["b"])
    assert kept(tmp_path).first == N


def test_what_is_there(tmp_path):
    """Fewer outputs are among those kept; another one makes all again, and the union is kept."""
    fill(kept(tmp_path), 700)
    assert kept(tmp_path, sizes={"b": 1}).first == N
    told = []
    assert kept(tmp_path, told.append, sizes={"c": 2}).sizes == {**SIZES, "c": 2}
    assert told == [f"{tmp_path} has no features c: all are made again"]
    assert kept(tmp_path).first == 0


def test_damage(tmp_path):
    """A flipped bit and a cut file are found, and made again with what is after them."""
    for cut in (False, True):
        fill(kept(tmp_path), N)
        path = tmp_path / f"{BLOCK:06d}.npz"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: 100 if cut else None])
        told = []
        found = kept(tmp_path, told.append)
        assert found.first == BLOCK and "is damaged" in told[0] and str(path) in told[0]
        np.testing.assert_array_equal(fill(found, 9).all("a"), FEATURES["a"])


def test_bad_input(tmp_path):
    found = kept(tmp_path)
    wrong = {name: rows[:9].copy() for name, rows in FEATURES.items()}
    found.add(wrong)
    wrong["b"][4] = np.nan
    with pytest.raises(FloatingPointError, match=r"the b features of 1 of 9 pictures have NaN .*, first picture 13"):
        found.add(wrong)
    with pytest.raises(ValueError, match=r"features of other settings \(seed 0, now 1\): delete it"):
        kept(tmp_path, settings={"seed": 1})
    (tmp_path / RECORD).write_text("[]")
    with pytest.raises(ValueError, match="is not what was written"):
        kept(tmp_path)
    (tmp_path / RECORD).rename(tmp_path / "mine.txt")
    with pytest.raises(ValueError, match=f"exists and has no {RECORD}: move it"):
        kept(tmp_path)
