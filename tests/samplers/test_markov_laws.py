"""Identities and closed forms of the Markov and DDIM-type samplers, and of the wrappers around denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.families import consistency
from ddpm_jax.samplers.grids import fastdpm
from tests.helpers import relative, trace

S = schedules.linear()
SMALL = schedules.linear(20, beta_start=1e-3, beta_end=0.4)
ZERO = schedules.zero_terminal_snr(SMALL)
GRID = grids.leading(S, 10)
KEY = jax.random.key(0)

MEAN = np.array([0.4, -0.3])
COV = np.array([[0.30, 0.12], [0.12, 0.10]])


def exact(mean=MEAN, cov=COV):
    """The exact denoiser of data ~ N(mean, cov): E[x_0 | x] is affine in x; told by the row's own level."""
    values, vectors = np.linalg.eigh(np.atleast_2d(cov))

    def denoise(x, row):
        of = lambda a: jnp.asarray(np.atleast_2d(a), x.dtype)
        gain = (of(vectors) * row.alpha * of(values) / (row.alpha**2 * of(values) + row.sigma**2)) @ of(vectors.T)
        x_0 = of(mean) + (x - row.alpha * of(mean)) @ gain
        return samplers.Denoised(x_0, (x - row.alpha * x_0) / row.sigma)

    return denoise


def updates(table):
    return table.rows.update


# ------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("grid", [grids.leading(S, 10), grids.trailing(S, 7), grids.sections(SMALL, 20)])
def test_first_order_is_ddim(grid):
    np.testing.assert_allclose(updates(samplers.plms(grid, order=1)), updates(samplers.ddim(grid)), atol=1e-13)
    by_v = updates(samplers.plms(grid, order=1, average="v"))
    np.testing.assert_allclose(by_v, updates(samplers.ddim(grid)), atol=1e-13)
    one = grids.from_timesteps(S, [900])
    np.testing.assert_allclose(updates(samplers.plms(one)), updates(samplers.ddim(one)), atol=1e-12)


def test_repaint_without_jumps_is_ddim_off_the_mask():
    a, b = samplers.repaint(GRID, num_visits=1, eta=0.7), samplers.ddim(GRID, eta=0.7)
    np.testing.assert_allclose(updates(a)[:, :, :-1], updates(b)[:, :, :-1], atol=1e-14)
    np.testing.assert_allclose(np.sqrt(a.rows.variance), updates(b)[:, 0, -1], atol=1e-14)
    np.testing.assert_allclose(a.rows.update[:, 0, -1], [t.sigma for _, t in GRID.steps()], atol=1e-14)


def test_tcd_with_eta_0_is_ddim_and_with_eta_1_returns_to_the_first_level():
    grid = grids.from_timesteps(S, [999, 759, 499, 259], last="first")
    table = samplers.tcd(grid, inner=consistency.inner_levels(S, grid, 0.0))
    np.testing.assert_allclose(updates(table), updates(samplers.ddim(grid)), atol=1e-14)
    assert all(u == grids.level(S, 0) for u in consistency.inner_levels(S, grid, 1.0))


def test_repaint_climbs_by_the_forward_process():
    """Known pixels land as q(x | x_0) wherever the next call is; the rest is noised from where it was."""
    table = samplers.repaint(GRID, jump_length=3, num_visits=2, eta=0.5)
    alphas, sigmas = (np.append(table.rows[i][1:], end) for i, end in ((1, 1.0), (2, 0.0)))  # where rows land
    np.testing.assert_allclose(updates(table)[:, 0, -1], sigmas, atol=1e-12)
    landed = {s.time: t for s, t in GRID.steps()}
    for k, (time, alpha, sigma) in enumerate(zip(*table.rows[:3], strict=True)):
        t = landed[time]
        keep, small = alphas[k] / t.alpha, 0.25 * t.sigma**2 / sigma**2 * (1 - (alpha / t.alpha) ** 2)
        assert table.rows.variance[k] == pytest.approx(keep**2 * small + 1 - keep**2, abs=1e-12)
    assert table.num_calls == 10 + 2 * 3 + 1 * 3


def test_variance_of_the_last_step_is_that_of_the_step_before():
    (s, t), end = GRID.steps()[-2], GRID.steps()[-1]
    small = t.sigma**2 / s.sigma**2 * (1 - (s.alpha / t.alpha) ** 2)
    for variance in ("fixed_large", "learned_range"):
        rows = samplers.ddpm(GRID, variance=variance).rows
        assert rows.update[-1, 0, -1] == 0 and rows.variance[-1] == pytest.approx(small, rel=1e-12)
    exactly = samplers.ddpm(GRID, variance="fixed_small").rows  # beta_tilde itself, as its name says
    assert exactly.update[-1, 0, -1] == 0 and exactly.variance[-1] == 0
    assert rows.spread[-1] == pytest.approx(np.log(end[0].sigma ** 2 / small), rel=1e-13)
    sampled = samplers.ddpm(GRID, variance="fixed_large", last_step="sample").rows
    assert sampled.update[-1, 0, -1] ** 2 == pytest.approx(end[0].sigma ** 2, rel=1e-13)


def test_lcm_keeps_the_image_at_t_0_and_weighs_both_where_tau_is_sigma_data():
    table = samplers.lcm(grids.from_timesteps(S, [500, 0]))
    last = table.rows.update[-1, 0, -3:]
    np.testing.assert_allclose(last, [table.rows.alpha[-1], table.rows.sigma[-1], 0], atol=1e-15)
    one = samplers.lcm(grids.from_timesteps(S, [1]), timestep_scaling=0.5)
    (alpha,), (sigma,) = one.rows.alpha, one.rows.sigma
    np.testing.assert_allclose(one.rows.update[0, 0, -3:], [0.5**0.5 + alpha / 2, sigma / 2, 0], atol=1e-15)


def test_strided_pairs_that_chain_are_the_grid():
    np.testing.assert_array_equal(updates(samplers.ddim(GRID)), updates(samplers.ddim(strided(10))))
    spaced = grids.linspace(S, 5)
    times = [int(s.time) for s in spaced.levels[:-1]]
    assert [(int(s.time), int(t.time)) for s, t in grids.strided(S, times, 200).steps()] == [
        (999, 799),
        (749, 549),
        (500, 300),
        (250, 50),
        (0, 0),
    ]


def strided(n, last="clean"):
    return grids.strided(S, [int(s.time) for s in grids.leading(S, n).levels[:-1]], 1000 // n, last=last)


def test_last_level_first_from_t_0_is_a_step_that_changes_nothing():
    rows = samplers.ddim(strided(10, "first")).rows
    assert rows.update[-1, 0, 0] == 0
    np.testing.assert_allclose(rows.update[-1, 0, -3:], [rows.alpha[-1], rows.sigma[-1], 0], atol=1e-15)


def test_inversion_undoes_sampling_where_eps_does_not_change(x64):
    # With eps the same everywhere, DDIM is exact, and its inverse exactly undoes it.
    eps = jax.random.normal(KEY, (2, 3), float)
    denoise = samplers.denoiser(lambda x, t: eps)
    x = jax.random.normal(jax.random.key(1), (2, 3), float)
    up, down = samplers.ddim_inverse(GRID), samplers.ddim(GRID)
    zeros = jnp.zeros((10, 2, 3))
    assert relative(trace(denoise, down, trace(denoise, up, x, zeros)[-1], zeros)[-1], x) < 1e-12


@pytest.mark.parametrize("told", ["next", "now"])
def test_inversion_after_sampling_approaches_the_identity(told, x64):
    """First order: half the steps, twice the error; on the levels that both visit."""
    denoise, x = exact(), jax.random.normal(KEY, (4, 2), float)

    def error(n):
        grid = grids.Grid(grids.from_timesteps(S, np.linspace(900, 100, n + 1).astype(int)).levels[:-1])
        x_0 = trace(denoise, samplers.ddim(grid), x, jnp.zeros((n, 4, 2)))[-1]
        table = samplers.ddim_inverse(grid, told=told)
        found = trace(denoise, table, x_0, jnp.zeros((n, 4, 2)))
        if told == "now":  # it goes on to pure noise, and takes x_0 for a sample one level up
            return relative(found[-2], x)
        return relative(found[-1], x)

    assert error(80) < 0.05
    assert 1.7 < error(40) / error(80) < 2.3


def test_a_learned_variance_with_v_at_its_ends_is_a_fixed_one(x64):
    x_T, noise = jax.random.normal(KEY, (3, 4), float), jax.random.normal(jax.random.key(1), (10, 3, 4), float)
    eps = lambda x, t: 0.5 * jnp.sin(x)

    def run(variance, v):
        network = lambda x, t: jnp.concatenate([eps(x, t), jnp.full_like(x, v)], axis=-1)
        return trace(
            samplers.denoiser(network, variance="learned_range"), samplers.ddpm(GRID, variance=variance), x_T, noise
        )

    fixed = lambda variance: trace(samplers.denoiser(eps), samplers.ddpm(GRID, variance=variance), x_T, noise)
    assert relative(run("learned_range", -1.0), fixed("fixed_small")) < 1e-13
    assert relative(run("learned_range", 1.0), fixed("fixed_large")) < 1e-13
    assert relative(run("fixed_small", 0.3), fixed("fixed_small")) < 1e-13  # such a table learns nothing
    given = samplers.ddpm(GRID, variance=[0.01] * 10)
    network = lambda x, t: jnp.concatenate([eps(x, t), jnp.full_like(x, np.log(0.01))], axis=-1)
    learned = samplers.denoiser(network, variance="learned")
    assert (
        relative(
            trace(learned, samplers.ddpm(GRID, variance="learned"), x_T, noise),
            trace(samplers.denoiser(eps), given, x_T, noise),
        )
        < 1e-13
    )


def test_a_network_of_the_mean_is_the_network_of_eps_it_comes_from(x64):
    table, x_T = samplers.ddpm(GRID), jax.random.normal(KEY, (3, 4), float)
    noise = jax.random.normal(jax.random.key(1), (10, 3, 4), float)
    eps = lambda x, t: 0.5 * jnp.sin(x)
    steps = {s.time: (s, t) for s, t in GRID.steps()}
    times = jnp.asarray(list(steps), jnp.float32)
    level = jnp.asarray([(s.alpha, s.sigma, t.alpha, t.sigma) for s, t in steps.values()])

    def mean(x, t):  # eq. 7 with x_0 from eps
        a_s, s_s, a_t, s_t = level[jnp.argmax(times == t[0])]
        beta = s_s**2 - (a_s * s_t / a_t) ** 2
        x_0 = (x - s_s * eps(x, t)) / a_s
        return beta * a_t / s_s**2 * x_0 + s_t**2 * a_s / (s_s**2 * a_t) * x

    found = trace(samplers.mean_denoiser(mean), table, x_T, noise)
    assert relative(found, trace(samplers.denoiser(eps), table, x_T, noise)) < 1e-13


# ---------------------------------------------------------------------------------------------------- wrappers


def test_dynamic_thresholding():
    x_0 = jnp.asarray(np.random.RandomState(0).randn(3, 5, 7) * [[[0.2]], [[1.0]], [[4.0]]], jnp.float32)
    wrapped = samplers.thresholded(lambda x, row: samplers.Denoised(x_0, x), 0.9, 2.0, "raw")
    found = wrapped(jnp.zeros_like(x_0), samplers.Row(0, 0.6, 0.8, 0, 0, None))
    for sample, got in zip(np.asarray(x_0), found.x_0, strict=True):
        s = min(max(np.quantile(np.abs(sample), 0.9), 1), 2)
        np.testing.assert_allclose(got, np.clip(sample, -s, s) / s, rtol=1e-5)
    np.testing.assert_array_equal(
        samplers.thresholded(lambda x, row: samplers.Denoised(x_0, x))(
            jnp.ones_like(x_0), samplers.Row(0, 0.6, 0.8, 0, 0, None)
        ).x_0,
        jnp.clip(x_0, -1, 1),
    )


def test_classifier_free_scales():
    c, u = (lambda x, t: x + 1), (lambda x, t: x - 2)
    x, t = jnp.ones((2, 3)), jnp.zeros(2)
    of = lambda **scale: guidance.classifier_free(c, u, **scale)(x, t)
    np.testing.assert_allclose(of(scale=3.0), of(weight=2.0))
    np.testing.assert_allclose(of(scale=3.0), -1 + 3.0 * (2 - -1) * jnp.ones((2, 3)))
    np.testing.assert_allclose(of(weight=jnp.float32(0)), c(x, t))
    np.testing.assert_allclose(of(scale=0.0), u(x, t))


def test_classifier_free_leaves_the_learned_variance():
    """Twice the channels: guidance acts on the prediction, the variance is the conditional network's."""
    c, u = (lambda x, t, i=i: jnp.concatenate([x + i, x * 0 + i], axis=-1) for i in (1, -2))
    x = jnp.ones((2, 3))
    found = guidance.classifier_free(c, u, scale=3.0)(x, jnp.zeros(2))
    np.testing.assert_allclose(found[:, :3], -1 + 3.0 * (2 - -1) * x)
    np.testing.assert_array_equal(found[:, 3:], x)


def test_classifier_guidance_samples_the_product_of_gaussians(x64):
    """p(x_0) p(y | x_0) with both Gaussian in x_t is Gaussian; the DDIM form with exact scores is exact guidance."""
    mean, cov, target, spread = np.array([0.4]), np.array([[0.3]]), 1.0, 0.2
    both = 1 / (1 / cov[0, 0] + 1 / spread)
    exact_product = exact(np.array([both * (mean[0] / cov[0, 0] + target / spread)]), np.array([[both]]))
    by_time = {s.time: s for s in GRID.levels[:-1]}
    times = jnp.asarray(list(by_time), jnp.float32)
    levels = jnp.asarray([(s.alpha, s.sigma) for s in by_time.values()])

    def gradient(x, t):  # of log N(target | E[x_0 | x], spread + Var[x_0 | x])
        alpha, sigma = levels[jnp.argmax(times == t[0])]
        total = alpha**2 * cov[0, 0] + sigma**2
        gain = alpha * cov[0, 0] / total
        guess, left = mean[0] + gain * (x - alpha * mean[0]), cov[0, 0] * sigma**2 / total
        return gain * (target - guess) / (spread + left)

    x_T, zeros = jax.random.normal(KEY, (5, 1), float), jnp.zeros((10, 5, 1))
    guided = guidance.score_shifted(exact(mean, cov), gradient, scale=1.0)
    found = trace(guided, samplers.ddim(GRID), x_T, zeros)
    assert relative(found, trace(exact_product, samplers.ddim(GRID), x_T, zeros)) < 1e-9

    # The DDPM form agrees to first order in the step: on the full grid, up to its step size.
    full = grids.sections(S, 1000)
    levels = jnp.asarray([(s.alpha, s.sigma) for s in full.levels[:-1]])
    times = jnp.asarray([s.time for s in full.levels[:-1]], jnp.float32)
    noise = jax.random.normal(jax.random.key(2), (1000, 5, 1), float)
    shifted = guidance.mean_shifted(exact(mean, cov), gradient, scale=1.0)
    table = samplers.ddpm(full, variance="fixed_small")
    got = samplers.sample(shifted, table, None, (5, 1), x_T=x_T, noise=noise)
    assert relative(got, samplers.sample(exact_product, table, None, (5, 1), x_T=x_T, noise=noise)) < 0.02


# ------------------------------------------------------------------------------------------------- closed forms


def test_analytic_variance_brings_the_law_of_one_level_to_the_next():
    """Isotropic Gaussian data: p(x_t | x_s) is Gaussian, and so exact for steps of any length."""
    mean, variance = 0.4, 0.3
    for grid in (grids.leading(S, 3), grids.trailing(S, 1), grids.leading(S, 5, offset=2)):
        gammas = [1 / (s.alpha**2 * variance + s.sigma**2) for s in grid.levels[:-1]]
        table = samplers.ddpm(grid, variance=samplers.analytic_variances(grid, gammas), last_step="sample")
        m, v = grid.levels[0].alpha * mean, grid.levels[0].alpha ** 2 * variance + grid.levels[0].sigma ** 2
        for (s, t), update in zip(grid.steps(), table.rows.update, strict=True):
            gain = s.alpha * variance / (s.alpha**2 * variance + s.sigma**2)
            of_x_0, of_eps, of_z = update[0, -3:]
            slope = of_x_0 * gain + of_eps * (1 - s.alpha * gain) / s.sigma
            m = slope * m + (of_x_0 - of_eps * s.alpha / s.sigma) * (1 - gain * s.alpha) * mean
            v = slope**2 * v + of_z**2
            assert m == pytest.approx(t.alpha * mean, abs=1e-10)
            assert v == pytest.approx(t.alpha**2 * variance + t.sigma**2, abs=1e-10)


def affine_steps(name, grid):
    """(A, B, std) of x_t = A x_0 + B eps + std z for every step, from each paper's own form."""
    for s, t in grid.steps():
        last = t is grid.levels[-1]
        beta = 1 - (s.alpha / t.alpha) ** 2
        small = t.sigma**2 / s.sigma**2 * beta
        if name in ("fixed_small", "fixed_large", "learned_range"):
            c1, c2 = beta * t.alpha / s.sigma**2, t.sigma**2 * s.alpha / (s.sigma**2 * t.alpha)
            log_variance = {"fixed_small": 0.0, "fixed_large": 1.0, "learned_range": 0.7}[name]
            std = 0 if last else np.sqrt(small ** (1 - log_variance) * beta**log_variance)
            yield c1 + c2 * s.alpha, c2 * s.sigma, std
        elif name in ("ddim", "var", "repaint"):
            std = 0.6 * np.sqrt(small)
            yield t.alpha, np.sqrt(t.sigma**2 - std**2), std
        elif name == "lcm":
            tau = 10 * s.time
            c_skip, c_out = 0.25 / (tau**2 + 0.25), tau / np.sqrt(tau**2 + 0.25)
            yield t.alpha * (c_out + c_skip * s.alpha), t.alpha * c_skip * s.sigma, t.sigma
        else:
            u = grids.level(S, int(0.4 * t.time))
            ratio = t.alpha / u.alpha
            yield t.alpha, ratio * u.sigma, np.sqrt(1 - ratio**2)


def run_of(name, grid):
    """The sampler under test: table and denoiser."""
    denoise = exact()
    if name == "learned_range":
        base = exact()
        scale = lambda x, row: jnp.exp(row.spread * jnp.full_like(x, 0.7) / 2)  # v = 0.4
        denoise = lambda x, row: base(x, row)._replace(noise_scale=scale(x, row))
    if name in ("fixed_small", "fixed_large", "learned_range"):
        return samplers.ddpm(grid, variance=name), denoise
    if name == "lcm":
        return samplers.lcm(grid), denoise
    if name == "tcd":
        return samplers.tcd(grid, inner=consistency.inner_levels(S, grid, 0.6)), denoise
    if name == "repaint":
        nothing = jnp.zeros((1, 2))
        return samplers.repaint(grid, num_visits=1, eta=0.6), samplers.known(denoise, nothing, nothing)
    return samplers.ddim(grid, eta=0.6), denoise


STOCHASTIC = {
    "fixed_small": grids.leading(S, 10),
    "fixed_large": grids.leading(S, 10),
    "learned_range": grids.leading(S, 10),
    "ddim": grids.trailing(S, 7),
    "var": fastdpm.var_grid(S, 10),
    "repaint": grids.leading(S, 10),
    "lcm": grids.from_timesteps(S, [999, 759, 499, 259]),
    "tcd": grids.from_timesteps(S, [999, 759, 499, 259], last="first"),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_moments_on_gaussian_data(name):
    """Correlated data: every step is affine in a Gaussian, so mean and covariance follow a recursion."""
    grid = STOCHASTIC[name]
    m, c = np.zeros(2), np.eye(2)
    for (s, _), (a, b, std) in zip(grid.steps(), affine_steps(name, grid), strict=True):
        gain = s.alpha * COV @ np.linalg.inv(s.alpha**2 * COV + s.sigma**2 * np.eye(2))
        slope = (a - b * s.alpha / s.sigma) * gain + b / s.sigma * np.eye(2)
        m = slope @ m + (a - b * s.alpha / s.sigma) * (np.eye(2) - s.alpha * gain) @ MEAN
        c = slope @ c @ slope.T + std**2 * np.eye(2)
    table, denoise = run_of(name, grid)
    n = 100_000
    x = np.asarray(jax.jit(lambda: samplers.sample(denoise, table, KEY, (n, 2)))(), np.float64)
    assert (np.abs(x.mean(0) - m) < 5 * np.sqrt(np.diag(c) / n)).all()
    error = np.sqrt((np.outer(np.diag(c), np.diag(c)) + c**2) / n)
    assert (np.abs(np.cov(x.T) - c) < 5 * error).all()


def test_repaint_moves_towards_the_conditional_law():
    """Known first pixel of correlated Gaussian data: resampling brings the second nearer to p(x_2 | x_1)."""
    n, given = 20_000, 1.0
    cov = np.array([[0.3, 0.25], [0.25, 0.3]])
    mean = MEAN[1] + cov[1, 0] / cov[0, 0] * (given - MEAN[0])
    original, mask = jnp.array([[given, 0.0]]), jnp.array([[1.0, 0.0]])
    denoise = samplers.known(exact(MEAN, cov), original, mask)
    grid = grids.leading(S, 50)
    far = {}
    for num_visits in (1, 5):
        table = samplers.repaint(grid, jump_length=5, num_visits=num_visits)
        x = np.asarray(jax.jit(lambda table=table: samplers.sample(denoise, table, KEY, (n, 2)))())
        np.testing.assert_array_equal(x[:, 0], given)
        far[num_visits] = abs(x[:, 1].mean() - mean)
    assert far[5] < far[1] / 2  # without resampling the pixels are out of harmony


# ------------------------------------------------------------------------------------------- grids and finiteness


def test_fastdpm_grids():
    grid = fastdpm.var_grid(S, 10)
    assert grid.levels[0].alpha ** 2 == pytest.approx(S.alphas_cumprod_float64[-1], rel=1e-9)
    assert grid.levels[0].time == pytest.approx(999, abs=1e-6)
    betas = np.array([1 - (s.alpha / t.alpha) ** 2 for s, t in grid.steps()])
    np.testing.assert_allclose(np.diff(betas, 2), 0, atol=1e-10)
    roots = np.sqrt([1 - (s.alpha / t.alpha) ** 2 for s, t in fastdpm.var_grid(S, 20, "quadratic").steps()])
    np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-9)
    integers = np.log(S.alphas_cumprod_float64)[[0, 17, 500, 999]]
    np.testing.assert_allclose(fastdpm.times_of(S, integers), [0, 17, 500, 999], atol=1e-5)
    assert [s.time for s in fastdpm.step_grid(S, 10).levels[:-1]] == list(range(999, -1, -111))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 19, 20])
def test_tables_are_finite(n):
    for schedule in (SMALL, ZERO):
        for spaced in (grids.leading, grids.trailing, grids.linspace, grids.uniform, grids.quad, grids.lucidrains):
            grid = spaced(schedule, n)
            tables = [
                samplers.ddpm(grid, variance=v) for v in ("fixed_small", "fixed_large", "learned", "learned_range")
            ]
            tables += [samplers.ddpm(grid, variance="learned_range", last_step="sample")]
            tables += [samplers.ddim(grid, eta=eta) for eta in (0.0, 0.5, 1.0)]
            tables += [samplers.ddim_inverse(grid, told=told) for told in ("next", "now")]
            tables += [samplers.lcm(grid), samplers.repaint(grid, jump_length=2, num_visits=3)]
            if grid.levels[0].alpha > 0:
                tables += [samplers.plms(grid, order=order) for order in (1, 2, 3, 4)]
                tables += [samplers.plms(grid, average="v")]
            for table in tables:
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(table.rows))
