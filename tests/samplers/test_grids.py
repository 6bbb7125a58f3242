import json

import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.grids import Grid, Level
from tests.helpers import GOLDEN, golden

S = schedules.linear()


def times(grid):
    """The times the network is told."""
    return [int(level.time) for level in grid.levels[:-1]]


def test_levels_are_those_of_the_schedule():
    grid = grids.from_timesteps(S, [900, 17, 0])
    for (time, alpha, sigma), t in zip(grid.levels, [900, 17, 0], strict=False):
        assert (time, alpha**2 + sigma**2) == (t, pytest.approx(1, abs=1e-15))
        assert alpha == pytest.approx(np.sqrt(np.prod(1 - S.betas_float64[: t + 1])), rel=1e-12)
    assert grid.levels[-1] == (0, 1, 0) and grid.num_steps == 3
    assert all(a[1] == b[0] for a, b in zip(grid.steps()[:-1], grid.steps()[1:], strict=True))  # they chain


def test_last_level_first():
    grid = grids.leading(S, 10, offset=1, last="first")
    assert grid.levels[-1].sigma == pytest.approx(0.01, rel=1e-12) and grid.levels[-2].time == 1


def test_respaced_schedules_tell_the_network_original_times():
    respaced = schedules.respace(S, [5, 50, 500])
    assert times(grids.sections(respaced, 3)) == [500, 50, 5]


def test_known_grids():
    # parity checklist, T1, T7 and systems D
    assert times(grids.leading(S, 7)) == [852, 710, 568, 426, 284, 142, 0]
    assert times(grids.linspace(S, 7)) == [999, 832, 666, 500, 333, 166, 0]
    assert times(grids.trailing(S, 7)) == [999, 856, 713, 570, 428, 285, 142]
    assert times(grids.sections(S, 10)) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert len(times(grids.uniform(S, 7))) == 8
    assert times(grids.quad(S, 10))[0] == 800
    for make in (grids.leading, grids.trailing, grids.linspace, grids.uniform, grids.sections):
        assert times(make(S, 1000)) == list(range(999, -1, -1))
        assert len(times(make(S, 1))) == 1


def test_openai_section_timesteps():
    cases = json.loads((GOLDEN / "openai" / "space_timesteps.json").read_text())["cases"]
    checked = 0
    for case in cases:
        length, sections = case["num_timesteps"], case["section_counts"]
        if sections == "fast27":
            continue  # GLIDE's name for "10,10,3,2,2" with one timestep moved
        if "error" in case["all"]:
            with pytest.raises(ValueError, match=r"sections?|steps|stride|spacing"):
                grids.section_timesteps(length, sections)
        else:
            np.testing.assert_array_equal(grids.section_timesteps(length, sections), case["all"])
        checked += 1
    assert checked == 26


@pytest.mark.parametrize(
    "make, spacing", [(grids.leading, "leading"), (grids.trailing, "trailing"), (grids.linspace, "linspace")]
)
def test_diffusers_grids(make, spacing):
    arrays, meta = golden("diffusers/timestep_grids")
    checked = 0
    for case in meta["cases"]:
        config = case.get("config", {})
        if (
            case["cls"] not in ("DDPMScheduler", "DDIMScheduler")
            or config.get("timestep_spacing", "leading") != spacing
        ):
            continue
        expected = arrays[f"{case['key']}.timesteps"]
        length = config.get("num_train_timesteps", 1000)
        offset = {"offset": config["steps_offset"]} if "steps_offset" in config and spacing == "leading" else {}
        found = times(make(schedules.linear(length), case["N"], **offset))
        np.testing.assert_array_equal(found, expected, err_msg=str(case))
        checked += 1
    assert checked >= 4


def test_ddim_and_ldm_grids():
    for name, make in (
        ("ddim_uniform20_eta0", grids.uniform),
        ("ddim_uniform7_eta1", grids.uniform),
        ("ddim_quad10_eta0", grids.quad),
    ):
        arrays, meta = golden(f"other/{name}")
        np.testing.assert_array_equal(times(make(S, meta["timesteps"])), arrays["seq"][::-1])
    arrays, _ = golden("other/ldm_schedules")
    for n in (7, 10, 50):  # LDM adds one, and repeats 0 for n = 50
        np.testing.assert_array_equal(np.array(times(grids.uniform(S, n)))[::-1] + 1, arrays[f"timesteps.uniform.{n}"])
        np.testing.assert_array_equal(
            np.array(times(grids.quad(S, n)))[::-1] + 1, np.unique(arrays[f"timesteps.quad.{n}"])
        )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: grids.leading(S, 1001), r"num_steps must be a whole number in \[1, 1000\], got 1001"),
        (lambda: grids.trailing(S, 0), r"in \[1, 1000\], got 0"),
        (lambda: grids.linspace(S, 2.5), r"got 2\.5"),
        (lambda: grids.from_timesteps(S, [3, 5]), r"decrease strictly, got 3 followed by 5"),
        (lambda: grids.from_timesteps(S, [1000, 5]), r"in \[0, 1000\), got 1000"),
        (lambda: grids.from_timesteps(S, [5, -1]), r"got -1"),
        (lambda: grids.from_timesteps(S, []), r"non-empty list of integers"),
        (lambda: grids.from_timesteps(S, [5.5]), r"integers"),
        (lambda: grids.leading(S, 10, last="one"), r"unknown last level 'one'.*known: clean, first"),
        (lambda: grids.leading(S, 10, last="first"), r"last timestep must be above 0"),
        (lambda: grids.leading(S, 1000, offset=1), r"in \[0, 1000\), got 1000"),
        (lambda: grids.sections(S, "10,x"), r"like '50', '10,15,20', 'ddim50' or 'fast27', got '10,x'"),
        (lambda: grids.sections(S, "600,600"), r"section of 500 timesteps can give 0 to 500 steps, got 600"),
        (lambda: grids.sections(S, "ddim51"), r"no whole stride takes 51 of 1000"),
        (lambda: Grid((Level(1, 1, 0),)), r"at least 2 levels, got 1"),
        (
            lambda: Grid((Level(9, 0.8, 0.6), Level(1, 0.6, 0.8))),
            r"sigma/alpha 0\.75 at time 9 followed by 1\.33333 at time 1",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_halfway():
    grid = grids.sections(S, 10)  # 999, 888, .., 0
    assert [s.time for s in grids.halfway(S, grid)] == [943, 832, 721, 610, 499, 388, 277, 166, 55, 0]
    spaced = schedules.respace(S, np.arange(5, 1000, 10))  # entries 0 .. 99 are told 5, 15, .., 995
    found = grids.halfway(spaced, grids.from_timesteps(spaced, [99, 90, 10]))
    assert [s.time for s in found] == [945, 505, 55] and found[0] == grids.level(spaced, 94)
