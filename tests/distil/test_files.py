"""Files of learned samplers: what they hold comes back, and what cannot be one is refused in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ddpm_jax import schedules
from ddpm_jax.distil import family, files
from ddpm_jax.samplers.catalogue import make_table
from tests.fuzz.common import JSON, fuzz, refused
from tests.fuzz.test_files import damaged, with_values

SCHEDULE = schedules.linear()
TIMES = family.times_of(SCHEDULE)


@pytest.fixture(scope="module")
def learned():
    numbers = family.numbers_of(make_table("unipc", SCHEDULE, 3, "time_quadratic"), SCHEDULE)
    table = family.table_of(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numbers), TIMES)
    return files.from_table(jax.tree.map(np.asarray, table), {"seed": 0})


def test_a_file_is_the_table(learned, tmp_path):
    files.save(tmp_path / "new" / "a.json", learned)
    again = files.load(tmp_path / "new" / "a.json")
    assert again == learned and again.made == {"seed": 0}
    numbers = family.numbers_of(make_table("unipc", SCHEDULE, 3, "time_quadratic"), SCHEDULE)
    expected = family.table_of(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numbers), TIMES)
    for found, leaf in zip(jax.tree.leaves(again.table()), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, leaf, atol=1e-6)
    with pytest.raises(FileExistsError, match=r"a\.json exists: choose another --name, or delete it"):
        files.save(tmp_path / "new" / "a.json", learned)


BAD_FILES = {
    "format": ("1", r"not a learned sampler: format must be 'ddpm-jax learned sampler, version 1', got '1'"),
    "calls": ([], r"calls must be a list of at least one, got \[\]"),
    "made": (3, r"made must be a mapping, got 3"),
    "more": (1, r"must have format, calls and made, got format, calls, made, more"),
    "calls.1.x_0": ([1.0], r"calls\[1\]\.x_0 must have 2 numbers, one for each call so far, got 1"),
    "calls.1.time": (999.0, r"calls\[1\]\.time must be below .*, that of the call before, got 999\.0"),
    "calls.1.eps": (float("nan"), r"eps must be a finite number, got nan"),
    "calls.0.alpha": (0.9, r"alpha\^2 \+ sigma\^2 must be 1"),
    "calls.0.sigma": (-1.0, r"sigma must lie in \(0, 1\), got -1"),
    "calls.0.extra": (1, r"unknown setting of calls\[0\] 'extra'"),
    "calls.0.time": ("999", r"time must be a finite number, got '999'"),
}


@pytest.mark.parametrize("where", BAD_FILES)
def test_what_no_file_may_say(where, learned, tmp_path):
    files.save(tmp_path / "a.json", learned)
    content = json.loads((tmp_path / "a.json").read_text())
    value, message = BAD_FILES[where]
    *path, name = where.split(".")
    parent = content
    for key in path:
        parent = parent[int(key)] if key.isdecimal() else parent[key]
    parent[name] = value
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        files.load(tmp_path / "a.json")
    assert str(error.value).startswith(str(tmp_path / "a.json")) and "\n" not in str(error.value)


def test_any_file_is_read_or_refused_by_its_name(learned, tmp_path):
    path = tmp_path / "a.json"
    files.save(path, learned)
    good = path.read_bytes()

    def check(content):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = refused(lambda: files.load(path), [str(path)])
        assert found is None or all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.table()))

    content = json.loads(good)
    call = with_values(content["calls"][1], st.one_of(JSON, st.floats(), st.lists(st.floats(-2, 2), max_size=3)))
    changed = call.map(lambda text: json.dumps(content | {"calls": [content["calls"][0], json.loads(text)]}))
    fuzz(150, st.one_of(changed, with_values(content), damaged(good)), check)


def test_another_schedule_is_refused_or_transferred(learned):
    files.check_schedule(learned, SCHEDULE)
    cosine = schedules.cosine()
    with pytest.raises(ValueError, match=r"learned for another noise schedule: at time 99\d\.\d+ it has log"):
        files.check_schedule(learned, cosine)
    moved = files.retimed(learned, cosine)
    files.check_schedule(moved, cosine)
    for a, b in zip(learned.calls, moved.calls, strict=True):
        assert (a.alpha, a.sigma, a.x_0, a.eps) == (b.alpha, b.sigma, b.x_0, b.eps) and a.time != b.time
    for a, b in zip(learned.calls, files.retimed(moved, SCHEDULE).calls, strict=True):
        assert a.time == pytest.approx(b.time, abs=1e-3)
    with pytest.raises(ValueError, match=r"no such time"):
        files.check_schedule(learned, schedules.linear_rescaled(100))
    short = schedules.from_betas(np.full(10, 1e-3))
    with pytest.raises(ValueError, match=r"lies in .* and this sampler calls it at 5\.\d+: it cannot be transferred"):
        files.retimed(learned, short)
