"""PyTorch's float32 numbers on which a whole timestep of diffusers depends: square roots, and positions cut by them."""

import numpy as np
import pytest

from ddpm_jax.samplers.configs import from_diffusers_config
from ddpm_jax.samplers.configs.square_root import square_root
from ddpm_jax.tools.parity import double

CUT = ("DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverMultistepInverse", "UniPCMultistep", "DEISMultistep")
CUT = tuple(f"{name}Scheduler" for name in (*CUT, "SASolver"))


def test_square_roots_by_their_laws():
    x = np.arange(0x3F800000, 0x40800000, 97, dtype=np.int32).view(np.float32)
    found, nearest = square_root(x), np.sqrt(x)
    assert found.dtype == np.float32
    errors = (found.astype(float) - np.sqrt(x.astype(float))) / np.spacing(nearest)
    assert 0.7 < np.abs(errors).max() < 0.75 and 0.16 < (found != nearest).mean() < 0.18
    for power in (-100, -2, 40, 100):  # a power of 4 is one of 2 of the root
        np.testing.assert_array_equal(square_root(np.ldexp(x, power)), np.ldexp(found, power // 2))
    odd = np.array([0, np.inf, 1e-40, -1, np.nan], np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(square_root(odd), np.sqrt(odd))
    assert square_root(np.float32(4)).shape == ()


def test_square_roots_are_those_of_pytorch(libraries):
    torch = libraries.torch
    x = np.arange(0x3F800000, 0x40800000, 7, dtype=np.int32).view(np.float32)
    if not double.same_roots(torch):
        pytest.skip("PyTorch has other square roots on this processor")
    np.testing.assert_array_equal(square_root(x), torch.from_numpy(x).sqrt().numpy())
    np.testing.assert_array_equal(square_root(x), (torch.from_numpy(x) ** 0.5).numpy())


@pytest.mark.parametrize(
    ("end", "times"),
    [(0.0201, [499, 497, 494, 490]), (0.0217, [498, 497, 495, 491]), (0.0248, [499, 497, 495, 492])],
)
def test_times_of_beta_sigmas(end, times):
    """Recorded; each with the nearest square root is off by one at the first, and the second so refused."""
    betas = (1e-4 + end * (np.arange(500) / 500) ** 1.5).tolist()
    config = {"num_train_timesteps": 500, "trained_betas": betas, "use_beta_sigmas": True}
    for name in ("SASolverScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        table = from_diffusers_config({"_class_name": name, **config}, 20).table
        assert table.rows.time[:4].tolist() == times


def test_a_position_beside_an_inexact_difference():
    """Of logarithms on both sides of 0 the difference is rounded: the last sigma of 68 linear betas is not cut."""
    config = {"_class_name": "DPMSolverMultistepInverseScheduler", "num_train_timesteps": 68, "use_beta_sigmas": True}
    times = from_diffusers_config({**config}, 12).table.rows.time
    assert times.tolist() == [0, 2, 8, 16, 24, 33, 42, 49, 56, 61, 65, 67]


def test_a_table_whose_last_entry_is_not_the_largest():
    """Recorded: 1000 linear betas at zero terminal SNR end in sigma 15406 and then 4096, of alphas_cumprod 2^-24."""
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    lu = {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}
    assert from_diffusers_config(lu | config, 3).table.rows.time.tolist() == [999, 600, 0]


def schedules_of(number: int):
    """(T, betas) of random schedules."""
    random = np.random.default_rng(0)
    for _ in range(number):
        length = int(random.integers(60, 400))
        line = np.linspace(0.02, 1, length) ** random.uniform(0.5, 3) * random.uniform(0.8, 1.2, length)
        yield length, np.minimum(line * random.uniform(3, 14) / line.sum(), 0.9).tolist()


@pytest.mark.parametrize(
    "number", [pytest.param(40, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.campaign)]
)
@pytest.mark.filterwarnings("ignore")
def test_times_of_every_number_of_steps(number, libraries):
    """Random schedules, N = 1 .. 50: the times of diffusers, or its repeated first; the classes take turns."""
    if not double.same_roots(libraries.torch):
        pytest.skip("PyTorch has other square roots on this processor")
    checked, rejected = 0, 0
    for index, (length, betas) in enumerate(schedules_of(number)):
        name = CUT[index % len(CUT)]
        flag = ("use_exponential_sigmas", "use_beta_sigmas", "use_karras_sigmas")[index // len(CUT) % 3]
        config = {"num_train_timesteps": length, "trained_betas": betas, flag: True}
        scheduler = getattr(libraries.diffusers, name).from_config(config)
        for num_steps in range(1, 51):
            scheduler.set_timesteps(num_steps)
            theirs = scheduler.timesteps.tolist()
            try:
                found = from_diffusers_config({"_class_name": name, **config}, num_steps).table.rows.time.tolist()
            except ValueError as error:
                assert "first two timesteps" in str(error) and theirs[0] == theirs[1], (name, flag, num_steps, error)
                rejected += 1
                continue
            assert found == theirs, (name, flag, index, num_steps)
            checked += 1
    assert checked > 40 * number and rejected < 10 * number
