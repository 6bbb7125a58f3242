"""The log-SNR solvers: identities between their tables, exactness, orders of convergence, the paper's grids."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.denoise import Denoised
from ddpm_jax.samplers.families import exponential
from ddpm_jax.samplers.families.exponential import interval, log_snr, phi
from ddpm_jax.samplers.grids import Grid, dpm_grids, sigma_grids
from tests.helpers import relative, trace

S = schedules.linear()
GRIDS = [
    dpm_grids.linspace(S, 7),
    dpm_grids.trailing(S, 10, last="first"),
    dpm_grids.at_sigmas(S, sigma_grids.karras_sigmas(5, 0.02, 140), last="clean"),
    dpm_grids.log_snr_uniform(S, 6),
    grids.sections(S, 50),
]
# Everything of order 1 that is the same step.
FIRST_ORDER = {
    "dpm_solver": lambda grid: samplers.dpm_solver(grid, order=1, predict="eps"),
    "dpm_solver++": lambda grid: samplers.dpm_solver(grid, order=1),
    "euler at the end": lambda grid: samplers.dpm_solver(grid, order=1, euler_at_final=True),
    "singlestep": lambda grid: samplers.dpm_solver_singlestep(grid, order=1, predict="eps"),
    "singlestep++": lambda grid: samplers.dpm_solver_singlestep(grid, order=1),
    "deis": lambda grid: samplers.deis(grid, order=1),
    "unipc": lambda grid: samplers.unipc(grid, order=1, corrector=False),
    "unipc eps bh1": lambda grid: samplers.unipc(grid, order=1, variant="bh1", predict="eps", corrector=False),
}


def same(a, b, tolerance):
    assert a.rows.update.shape == b.rows.update.shape
    np.testing.assert_allclose(a.rows.update, b.rows.update, atol=tolerance, rtol=0)
    np.testing.assert_array_equal(a.rows.time, b.rows.time)


# ------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.parametrize("grid", GRIDS)
def test_first_order_is_ddim(name, grid):
    same(FIRST_ORDER[name](grid), samplers.ddim(grid), 1e-14)


@pytest.mark.parametrize("grid", GRIDS)
def test_first_order_with_noise_is_ddim_with_eta_1(grid):
    expected = samplers.ddim(grid, eta=1.0)
    same(samplers.dpm_solver(grid, order=1, eta=1.0), expected, 1e-14)
    same(samplers.dpm_solver_singlestep(grid, order=1, eta=1.0), expected, 1e-14)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("predict", ["x_0", "eps"])
@pytest.mark.parametrize("grid", GRIDS)
def test_unipc_without_corrector_is_its_predictor(order, predict, grid):
    found = samplers.unipc(grid, order=order, predict=predict, corrector=False)
    same(found, samplers.dpm_solver(grid, order=order, predict=predict, third_order="corrected"), 1e-12)
    every = range(grid.num_steps)
    same(samplers.unipc(grid, order=order, predict=predict, disable_corrector=every), found, 0)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_deis_is_dpm_solver_with_exact_moments(order, grid):
    expected = samplers.dpm_solver(grid, order=order, predict="eps", method="heun", third_order="corrected")
    same(samplers.deis(grid, order=order), expected, 1e-11)


def test_sa_solver_without_noise_is_unipc(x64):
    """tau = 0: the same Adams methods, also where both have one weight of 1/2."""
    grid = dpm_grids.linspace(S, 8, last="first")
    x, zero = jnp.asarray([[1.3, -0.4]]), jnp.zeros((8, 1, 2))
    for p in (1, 2, 3):
        unipc = samplers.unipc(grid, order=p, variant="bh1")
        sa = samplers.sa_solver(grid, predictor_order=p, corrector_order=p + 1, tau=lambda time: 0.0)
        assert relative(trace(gaussian(0.25), sa, x, zero), trace(gaussian(0.25), unipc, x, zero)) < 1e-12


def test_a_singlestep_block_starts_anew(x64):
    """Two blocks are one block, and then the other on what came out."""
    grid = dpm_grids.log_snr_uniform(S, 6)
    x, zero = jnp.asarray([[1.3, -0.4]]), jnp.zeros((6, 1, 2))
    options = {"order": 3, "method": "heun", "lower_order_final": False}
    whole = trace(gaussian(0.25), samplers.dpm_solver_singlestep(grid, **options), x, zero)
    for levels in (grid.levels[:4], grid.levels[3:]):
        x = jnp.asarray(trace(gaussian(0.25), samplers.dpm_solver_singlestep(Grid(levels), **options), x, zero)[-1])
    assert relative(whole[-1], x) < 1e-14


# -------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("z", [-30.0, -1.0, -0.999, -1e-3, 0.0, 0.5, 1.0, 8.0])
def test_phi(z):
    for k in (1, 2, 3, 4):
        expected = quad(lambda u, k=k: np.exp((1 - u) * z) * u ** (k - 1), 0, 1, epsabs=0, epsrel=1e-12)[0]
        assert phi(k, z) * np.prod(np.arange(1, k)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("predict", ["x_0", "eps"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_moments_are_those_integrals(predict, eta):
    s, t = GRIDS[3].levels[1:3]
    h, step = log_snr(t) - log_snr(s), interval(s, t, predict, eta)
    weight = {
        "x_0": lambda u: t.alpha * (1 + eta) * h * np.exp(-(1 + eta) * h * (1 - u)),
        "eps": lambda u: -(1 + eta) * t.sigma * h * np.exp(h * (1 - u)),
    }[predict]
    for k in range(4):
        assert step.moments[k] == pytest.approx(quad(lambda u, k=k: weight(u) * u**k, 0, 1)[0], rel=1e-10)


@pytest.mark.parametrize("predict", ["x_0", "eps"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_known_image_stays_distributed(predict, eta):
    """With one x_0 and the eps of x, the mean stays alpha x_0, and eps with noise has the variance sigma^2."""
    s, t = GRIDS[3].levels[1:3]
    step = interval(s, t, predict, eta)
    if predict == "x_0":
        assert step.keep * s.alpha + step.moments[0] == pytest.approx(t.alpha, rel=1e-13)
        assert (step.keep * s.sigma) ** 2 + step.std**2 == pytest.approx(t.sigma**2, rel=1e-12)
    else:
        assert step.keep * s.alpha == pytest.approx(t.alpha, rel=1e-13)


def gaussian(variance):
    """x_0 and eps for data ~ N(0, variance), exact at any level."""

    def denoise(x, row):
        x_0 = row.alpha * variance / (row.alpha**2 * variance + row.sigma**2) * x
        return Denoised(x_0, (x - row.alpha * x_0) / row.sigma)

    return denoise


ORDERS = {
    "2M": (samplers.dpm_solver, {}, 2),
    "2M heun": (samplers.dpm_solver, {"method": "heun"}, 2),
    "3M": (samplers.dpm_solver, {"order": 3}, 2),
    "3M corrected": (samplers.dpm_solver, {"order": 3, "third_order": "corrected"}, 3),
    "eps 2M": (samplers.dpm_solver, {"predict": "eps"}, 2),
    "eps 3M corrected": (samplers.dpm_solver, {"order": 3, "predict": "eps", "third_order": "corrected"}, 3),
    "deis 2": (samplers.deis, {}, 2),
    "deis 3": (samplers.deis, {"order": 3}, 3),
    "singlestep 2": (samplers.dpm_solver_singlestep, {}, 2),
    "singlestep 2 heun": (samplers.dpm_solver_singlestep, {"method": "heun"}, 2),
    "singlestep 3": (samplers.dpm_solver_singlestep, {"order": 3, "method": "heun"}, 3),
    "singlestep 3 of the paper": (samplers.dpm_solver_singlestep, {"order": 3, "predict": "eps", "inner": "heun"}, 3),
    "unipc 2": (samplers.unipc, {}, 3),
    "unipc 2 bh1": (samplers.unipc, {"variant": "bh1"}, 3),
    "unipc 3": (samplers.unipc, {"order": 3}, 4),
    **{f"lms {order}": (samplers.lms, {"order": order}, order) for order in (4, 5, 6)},
    "sa 2, 2": (samplers.sa_solver, {"tau": lambda time: 0.0}, 2),
    "sa 3, 4": (samplers.sa_solver, {"predictor_order": 3, "corrector_order": 4, "tau": lambda time: 0.0}, 4),
}


def two_gaussians(x, row):
    """x_0 and eps for data from 0.3 N(-1, 0.16) + 0.7 N(1, 0.16)."""
    variance = row.alpha**2 * 0.16 + row.sigma**2
    odds = np.log(3 / 7) - 2 * row.alpha * x / variance
    centre = -jnp.tanh(odds / 2)
    x_0 = centre + row.alpha * 0.16 / variance * (x - row.alpha * centre)
    return Denoised(x_0, (x - row.alpha * x_0) / row.sigma)


@pytest.fixture(scope="module")
def flow():
    """(starts, ends) of the flow of `two_gaussians` from log-SNR -14 to 2, as x in network coordinates."""
    starts = np.linspace(-1.5, 1.7, 8)

    def slope(lam, y):  # of y = x / alpha, d y = eps d rho
        level = sigma_grids.scaled(np.exp(-lam), 0.0)
        with jax.enable_x64(True):
            return -np.exp(-lam) * np.asarray(two_gaussians(jnp.asarray(y * level.alpha), level).eps)

    y = starts / sigma_grids.scaled(np.exp(14.0), 0.0).alpha
    solved = solve_ivp(slope, (-14, 2), y, method="DOP853", rtol=1e-12, atol=1e-12)
    return starts, solved.y[:, -1] * sigma_grids.scaled(np.exp(-2.0), 0.0).alpha


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, flow, x64):
    make, options, order = ORDERS[name]
    starts, ends = flow

    def error(n):
        # From where x is all noise, so that the first steps, of lower order, have nothing to err about.
        grid = Grid(tuple(sigma_grids.scaled(float(np.exp(-lam)), 0.0) for lam in np.linspace(-14, 2, n + 1)))
        table = make(grid, **({} if make is samplers.lms else {"lower_order_final": False}), **options)
        x_T = jnp.asarray(starts).reshape(1, -1)
        found = trace(two_gaussians, table, x_T, jnp.zeros((table.num_calls, 1, 8)))[-1, 0]
        return np.sqrt(((found - ends) ** 2).mean())

    n = 480 if order >= 4 else 240  # the fourth order shows late
    slope = np.log2(error(n) / error(2 * n))
    assert abs(slope - order) < 0.25, slope


def test_2s_ancestral_is_k_diffusions_step(x64):
    """x / alpha moves by x_2 = (sigma_m / sigma) x - expm1(-h / 2) D(x), then by D(x_2), then up."""
    grid, level_at = dpm_grids.linspace(S, 4), sigma_grids.discrete(S)
    denoise = gaussian(0.25)
    table = samplers.dpm_solver_2s_ancestral(grid, level_at, eta=0.7)
    assert table.num_calls == 7
    rng = np.random.default_rng(0)
    x_T, noise = rng.normal(size=(2, 3)), rng.normal(size=(7, 2, 3))
    found = trace(denoise, table, jnp.asarray(x_T), jnp.asarray(noise))
    sigmas = [sigma_grids.ratio(level) for level in grid.levels]
    x = x_T / grid.levels[0].alpha
    mean = lambda x, sigma: 0.25 / (0.25 + sigma**2) * x  # of x_0 given x = x_0 + sigma eps
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        up = 0.7 * after * np.sqrt(1 - after**2 / now**2)
        down = np.sqrt(after**2 - up**2)
        if down == 0:
            x = mean(x, now)
        else:
            middle, h = np.sqrt(now * down), np.log(now / down)
            inner = middle / now * x - np.expm1(-h / 2) * mean(x, now)
            x = down / now * x - np.expm1(-h) * mean(inner, middle) + up * noise[2 * i + 1]
        assert relative(found[min(2 * i + 1, 6)], x * grid.levels[i + 1].alpha) < 1e-12


# ------------------------------------------------------------------------------------------------- every length

MANY = {
    **FIRST_ORDER,
    **{name: functools.partial(make, **options) for name, (make, options, _) in ORDERS.items()},
    "2M-SDE": lambda g: samplers.dpm_solver(g, eta=1.0),
    "3M-SDE": lambda g: samplers.dpm_solver(g, order=3, eta=1.0),
    "3M-SDE of diffusers": lambda g: samplers.dpm_solver(g, order=3, eta=1.0, third_order="diffusers_sde"),
    "singlestep SDE": lambda g: samplers.dpm_solver_singlestep(g, order=3, eta=1.0, method="heun"),
    "2S ancestral": lambda g: samplers.dpm_solver_2s_ancestral(g, sigma_grids.discrete(S)),
    "sa": lambda g: samplers.sa_solver(g, predictor_order=3, corrector_order=4),
    "no lower order": lambda g: samplers.unipc(g, order=3, lower_order_final=False),
}


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("n", [1, 2, 3, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (999, 1000))])
def test_every_length_is_finite(name, n):
    found = [dpm_grids.trailing(S, n), dpm_grids.trailing(S, n, last="first"), dpm_grids.log_snr_uniform(S, n)]
    if n < 1000:
        found += [dpm_grids.linspace(S, n, last="first"), dpm_grids.leading(S, n)]
    if n < 20:
        sigmas = sigma_grids.karras_sigmas(n, 0.01, 157)
        found += [dpm_grids.at_sigmas(S, sigmas, last=last) for last in ("clean", "same")]
        found += [dpm_grids.log_snr_uniform(S, n, denoise_to_zero=True), dpm_grids.time_quadratic(S, n)]
    for grid in found:
        table = MANY[name](grid)
        assert np.isfinite(table.rows.update).all()
        assert table.rows.update.shape[1] <= 6 and table.init == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------- grids


def test_log_snr_uniform():
    grid = dpm_grids.log_snr_uniform(S, 12)
    lams = [log_snr(level) for level in grid.levels]
    np.testing.assert_allclose(np.diff(lams), (lams[-1] - lams[0]) / 12, rtol=1e-10)
    assert (grid.levels[0].time, grid.levels[-1].time) == (999, pytest.approx(0, abs=1e-9))
    assert grid.levels[-1].sigma == pytest.approx(0.01, rel=1e-9)  # of t = 0
    for time, alpha, sigma in grid.levels:  # log alpha is linear between timesteps, and they are variance-preserving
        expected = np.interp(time, np.arange(1000), np.log(S.alphas_cumprod_float64) / 2)
        assert (np.log(alpha), alpha**2 + sigma**2) == (pytest.approx(expected, rel=1e-12), pytest.approx(1))


def test_time_grids():
    uniform = [level.time for level in dpm_grids.time_uniform(S, 9).levels]
    np.testing.assert_allclose(np.diff(uniform), -111, rtol=1e-12)
    quadratic = [(level.time + 1) / 1000 for level in dpm_grids.time_quadratic(S, 9, t_end=0.01).levels]
    np.testing.assert_allclose(np.diff(np.sqrt(quadratic)), -0.1, rtol=1e-9)
    ended = dpm_grids.time_uniform(S, 9, denoise_to_zero=True)
    assert ended.levels[-1] == (0, 1, 0) and ended.num_steps == 10


def test_cosine_schedules_are_cut_at_lambda_min():
    cosine = schedules.cosine()
    start = dpm_grids.log_snr_uniform(cosine, 5).levels[0]
    assert -5.1 <= log_snr(start) < -4.9 and 980 < start.time < 999
    assert dpm_grids.linspace(cosine, 5, lambda_min=-5.1).levels[0].time == start.time
    assert dpm_grids.linspace(cosine, 5).levels[0].time == 999


def test_ascent():
    up = dpm_grids.Ascent(GRIDS[1].levels[::-1])
    table = samplers.dpm_solver(up)
    assert np.isfinite(table.rows.update).all() and table.num_calls == 10
    with pytest.raises(ValueError, match=r"noise must increase strictly, got"):
        dpm_grids.Ascent(GRIDS[1].levels)


def test_inversion_then_sampling_returns(x64):
    """The closer, the more steps."""
    errors = []
    for n in (20, 80):
        grid = dpm_grids.linspace(S, n, last="first")
        up, down = samplers.dpm_solver(dpm_grids.Ascent(grid.levels[::-1])), samplers.dpm_solver(grid)
        x = jnp.asarray([[0.7, -0.2]])
        zero = jnp.zeros((n, 1, 2))
        noisy = trace(gaussian(0.25), up, x, zero)[-1]
        errors.append(relative(trace(gaussian(0.25), down, jnp.asarray(noisy), zero)[-1], x))
    assert errors[1] < errors[0] / 4 and errors[1] < 0.05


# -------------------------------------------------------------------------------------------------------- errors

GRID = GRIDS[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: samplers.dpm_solver(GRID, order=4), r"order must be a whole number in \[1, 3\], got 4"),
        (lambda: samplers.deis(GRID, order=0), r"in \[1, 3\], got 0"),
        (lambda: samplers.sa_solver(GRID, corrector_order=5), r"corrector_order must .* \[1, 4\], got 5"),
        (lambda: samplers.sa_solver(GRID, predictor_order=0), r"predictor_order must .* \[1, 4\], got 0"),
        (lambda: samplers.dpm_solver(GRID, predict="x0"), r"unknown predict 'x0'.*known: x_0, eps"),
        (lambda: samplers.dpm_solver(GRID, method="mid"), r"unknown method 'mid'.*known: midpoint, heun"),
        (lambda: samplers.dpm_solver(GRID, third_order="x"), r"unknown third_order 'x'"),
        (lambda: samplers.dpm_solver_singlestep(GRID, third_order="x"), r"unknown third_order 'x'"),
        (lambda: samplers.unipc(GRID, variant="bh3"), r"unknown variant 'bh3'.*known: bh1, bh2"),
        (lambda: samplers.dpm_solver(GRID, eta=-1), r"eta must be at least 0, got -1"),
        (lambda: samplers.dpm_solver(GRID, eta=1, predict="eps"), r"cannot end at sigma = 0, got eta 1"),
        (
            lambda: samplers.dpm_solver(dpm_grids.Ascent(GRID.levels[-2::-1]), eta=1),
            r"eta must be 0 towards more noise",
        ),
        (lambda: samplers.dpm_solver_2s_ancestral(GRID, sigma_grids.discrete(S), eta=2), r"eta must .*got 2"),
        (lambda: samplers.dpm_solver_singlestep(GRID, lower_order_final=False), r"multiple of 2, got 7"),
        (lambda: dpm_grids.linspace(S, 1000), r"num_steps must be a whole number in \[1, 999\], got 1000"),
        (lambda: dpm_grids.trailing(S, 0), r"in \[1, 1000\], got 0"),
        (lambda: dpm_grids.linspace(S, 5, last="zero"), r"unknown last level 'zero'.*known: clean, first, same"),
        (lambda: dpm_grids.linspace(S, 5, lambda_min=9), r"below the log-SNR of the first timestep, got 9"),
        (lambda: dpm_grids.at_timesteps(S, [5, 50]), r"noise must decrease strictly"),
        (lambda: dpm_grids.at_timesteps(S, [1000]), r"timesteps must lie in \[0, 1000\), got 1000"),
        (lambda: dpm_grids.at_timesteps(S, []), r"non-empty list of integers"),
        (lambda: dpm_grids.at_sigmas(S, [5.0, 1.0], rounding="up"), r"unknown rounding 'up'.*nearest"),
        (lambda: dpm_grids.continuous(S, "t", 5), r"unknown coordinate 't'"),
        (lambda: dpm_grids.time_uniform(S, 5, t_end=0.0001), r"t_end must lie in \[0\.001, 1\), got 0\.0001"),
        (lambda: dpm_grids.time_uniform(S, 0), r"num_steps must be a whole number in \[1, 1000000\], got 0"),
        (
            lambda: dpm_grids.time_uniform(schedules.zero_terminal_snr(S), 5, lambda_min=-np.inf),
            r"lambda_min must drop entries where alphas_cumprod is 0, got -inf",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_step_orders():
    orders = lambda *args, lower=True, clean=False: exponential.step_orders(*args, lower_order_final=lower, clean=clean)
    assert orders(6, 3) == [1, 2, 3, 3, 2, 1]
    assert orders(6, 3, lower=False) == [1, 2, 3, 3, 3, 3]
    assert orders(6, 3, lower=False, clean=True) == [1, 2, 3, 3, 3, 1]
    assert orders(1, 3) == [1]
