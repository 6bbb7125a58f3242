"""The notation, the passes, the loop, and what makes samples independent of batches."""

from math import expm1, fsum, log1p

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ddpm_jax import process, samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.families.ancestral import transition_variance
from ddpm_jax.samplers.table import EPS, M1, M2, SAVED, X0, Table, X, Z, compact, eliminate_x
from tests.helpers import gaussian_model, relative, trace

S = schedules.linear(50)
GRID = grids.leading(S, 10)
KEY = jax.random.key(0)
SHAPE = (3, 2, 2, 1)


@samplers.sampler
def heun(grid):
    """EDM's algorithm 2 without churn, in x / alpha coordinates: two registers and inner stages."""
    for s, t in grid.steps():
        h = t.sigma / t.alpha - s.sigma / s.alpha
        euler = t.alpha * (X / s.alpha + h * EPS)
        if t.sigma == 0:
            yield samplers.row(s, X=euler)
        else:
            yield samplers.row(s, X=euler, SAVED=t.alpha * (X / s.alpha + h * EPS / 2))
            yield samplers.row(t, X=SAVED + t.alpha * h * EPS / 2)


# ------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_scanning_p_step_over_all_steps_is_the_ddpm_table(prediction, variance, clip):
    """Equal to float rounding: at every step, from the same state, and nearly so over the whole run."""
    model_fn = lambda x, t: 0.9 * x + 0.1 * jnp.sin(3 * x) - 0.2 * (t / 50).reshape(-1, 1, 1, 1)
    noise = jax.random.normal(KEY, (50, *SHAPE))
    x_T = jax.random.normal(jax.random.key(1), SHAPE)
    options = {"prediction": prediction, "variance": variance, "clip": clip}

    def body(x, inputs):
        t, z = inputs
        t = jnp.full(SHAPE[:1], t)
        x = process.p_step(S, x, t, model_fn(x, t.astype(jnp.float32)), z, **options)
        return x, x

    _, expected = jax.lax.scan(body, x_T, (jnp.arange(49, -1, -1), noise))
    table = samplers.ddpm(grids.sections(S, 50), variance=variance)
    found = trace(samplers.denoiser(model_fn, prediction, clip), table, x_T, noise)
    assert relative(found, expected) < 2e-5
    one_step = jax.vmap(lambda x, k, z: trace_one(model_fn, table, prediction, clip, x, k, z))
    before = jnp.concatenate([x_T[None], expected[:-1]])
    assert relative(one_step(before, jnp.arange(50), noise), expected) < 2e-6


def trace_one(model_fn, table, prediction, clip, x, k, z):
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32)[k], table.rows)
    return samplers.run.step(samplers.denoiser(model_fn, prediction, clip), rows, (x,), z)[0]


def test_ddim_with_eta_1_is_ancestral_with_fixed_small():
    # In normal form the two tables are the same numbers.
    for grid in (grids.sections(S, 50), grids.trailing(S, 7), grids.leading(S, 5, offset=3, last="first")):
        a, b = samplers.ddim(grid, eta=1.0), samplers.ddpm(grid, variance="fixed_small")
        if grid.levels[-1].sigma > 0:  # DDPM adds no noise on the way to the last level, wherever that is
            a, b = (t._replace(rows=jax.tree.map(lambda leaf: leaf[:-1], t.rows)) for t in (a, b))
        np.testing.assert_allclose(a.rows.update, b.rows.update, atol=1e-14)


def test_passes_keep_the_numbers():
    """The same run with the raw rows, X eliminated, and unused registers dropped."""
    raw = [np.asarray(c, np.float64) for c in zip(*heun.__wrapped__(GRID), strict=True)]
    raw = Table(samplers.Row(*raw), 1.0)
    assert raw.rows.update.shape == (19, 6, 9)
    model = samplers.denoiser(gaussian_model(S, 0.3, 0.2))
    x_T, noise = jax.random.normal(KEY, SHAPE), jnp.zeros((19, *SHAPE))
    expected = trace(model, raw, x_T, noise)
    for table in (eliminate_x(raw), compact(raw), heun(GRID)):
        assert relative(trace(model, table, x_T, noise), expected) < 1e-5
    assert compact(raw).rows.update.shape == (19, 2, 5) == heun(GRID).rows.update.shape
    assert (heun(GRID).rows.update[:, :, 0] == 0).all()
    assert samplers.ddim(GRID).rows.update.shape == (10, 1, 4)


def test_compact_keeps_what_x_depends_on_through_other_registers():
    @samplers.sampler
    def late(grid):
        for s, _ in grid.steps():
            yield samplers.row(s, X=X0 + M1 / 2, M1=M2, M2=EPS, M3=M2)  # nothing reads M3

    table = late(GRID)
    assert table.rows.update.shape == (10, 3, 6)
    model = samplers.denoiser(gaussian_model(S, 0.3, 0.2))
    raw = Table(samplers.Row(*(np.asarray(c, np.float64) for c in zip(*late.__wrapped__(GRID), strict=True))), 1.0)
    x_T, noise = jax.random.normal(KEY, SHAPE), jnp.zeros((10, *SHAPE))
    assert relative(trace(model, table, x_T, noise), trace(model, raw, x_T, noise)) < 1e-5


def test_right_hand_sides_use_the_old_registers():
    @samplers.sampler
    def swap(grid):
        s = grid.levels[0]
        yield samplers.row(s, X=2 * X0, SAVED=X)
        yield samplers.row(s, X=SAVED, SAVED=X)
        yield samplers.row(s, X=X + SAVED)

    zero = lambda x, row: samplers.Denoised(jnp.zeros_like(x), x / row.sigma)  # x_0 = 0: X becomes 0, SAVED x_T
    x_T = jax.random.normal(KEY, SHAPE)
    got = trace(zero, swap(GRID), x_T, jnp.zeros((3, *SHAPE)))
    np.testing.assert_allclose(got[1], x_T, rtol=1e-6)
    np.testing.assert_allclose(got[2], x_T, rtol=1e-6)


def test_heun_written_in_the_notation_is_second_order(x64):
    """Against the exact flow of a Gaussian: x_t / std_t is constant, std_t^2 = alpha_t^2 variance + sigma_t^2."""
    s = schedules.linear(4096, beta_start=1e-4 / 4, beta_end=0.02 / 4)
    denoise = samplers.denoiser(gaussian_model(s, 0.0, 0.25))
    x_T = jnp.ones((1, 1))

    def error(sampler, n):
        # Uniform in time between two fixed levels, away from the clean one, where time is a poor coordinate.
        steps = np.arange(4000, 0, -4000 // n)
        grid = grids.Grid(grids.from_timesteps(s, np.append(steps, 500)[: n * 7 // 8 + 1]).levels[:-1])
        table = sampler(grid)
        found = trace(denoise, table, x_T, jnp.zeros((table.num_calls, 1, 1)))[-1, 0, 0]
        std = lambda level: np.sqrt(level.alpha**2 * 0.25 + level.sigma**2)
        exact = std(grid.levels[-1]) / std(grid.levels[0]) * table.init
        return abs(found - exact)

    for sampler, order in ((samplers.ddim, 1), (heun, 2)):
        slope = np.log2(error(sampler, 80) / error(sampler, 160))
        assert abs(slope - order) < 0.25, (sampler, slope)


# ------------------------------------------------------------------------------------------------------- the loop


def run(table, model=None, **options):
    denoise = samplers.denoiser(model or gaussian_model(S, 0.3, 0.2), clip=None)
    return jax.jit(lambda: samplers.sample(denoise, table, **options))()


def test_the_scan_is_the_python_loop():
    table = samplers.ddpm(GRID)
    x_T, noise = jax.random.normal(KEY, SHAPE), jax.random.normal(jax.random.key(1), (10, *SHAPE))
    expected = trace(samplers.denoiser(gaussian_model(S, 0.3, 0.2)), table, x_T, noise)[-1]
    np.testing.assert_allclose(run(table, key=None, shape=SHAPE, x_T=x_T, noise=noise), expected, rtol=1e-5, atol=1e-6)


def test_a_trajectory_is_x_at_every_call():
    """Of the loop in Python, where noise is drawn too; x_0 is that of `sample`."""
    table = samplers.ddpm(GRID)
    denoise = samplers.denoiser(gaussian_model(S, 0.3, 0.2))
    x_T, noise = jax.random.normal(KEY, SHAPE), jax.random.normal(jax.random.key(1), (10, *SHAPE))
    states = [table.init * x_T, *trace(denoise, table, x_T, noise)]
    x_0, found = samplers.trajectory(denoise, table, None, SHAPE, x_T=x_T, noise=noise)
    np.testing.assert_allclose(found, np.stack(states[:-1]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x_0, states[-1], rtol=1e-5, atol=1e-6)
    drawn = samplers.trajectory(denoise, table, KEY, SHAPE, first_index=3)[0]
    np.testing.assert_array_equal(drawn, samplers.sample(denoise, table, KEY, SHAPE, first_index=3))


def test_samples_do_not_depend_on_the_batch():
    for table in (samplers.ddpm(GRID), samplers.ddim(GRID)):
        whole = run(table, key=KEY, shape=(6, 4))
        parts = [run(table, key=KEY, shape=(2, 4), first_index=i) for i in (0, 2, 4)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert len(np.unique(np.asarray(whole)[:, 0])) == 6


def test_documented_keys():
    """Noise z for row k of sample i is normal(fold_in(fold_in(key, i), k)); the start is row 2^32 - 1."""
    key_of = lambda i, k: jax.random.fold_in(jax.random.fold_in(KEY, i), k)
    x_T = jnp.stack([jax.random.normal(key_of(i, np.uint32(2**32 - 1)), (4,)) for i in range(2)])
    noise = jnp.stack([jnp.stack([jax.random.normal(key_of(i, k), (4,)) for i in range(2)]) for k in range(10)])
    table = samplers.ddpm(GRID)
    given = run(table, key=None, shape=(2, 4), x_T=x_T, noise=noise)
    np.testing.assert_allclose(run(table, key=KEY, shape=(2, 4)), given, rtol=1e-5, atol=1e-6)


def test_one_network_call_per_row_and_one_trace():
    traces = 0

    def model_fn(x, t):
        nonlocal traces
        traces += 1
        return x

    run(samplers.ddpm(GRID), model_fn, key=KEY, shape=SHAPE)
    assert traces == 1 and samplers.ddpm(GRID).num_calls == 10 and heun(GRID).num_calls == 19


def test_gradient_with_respect_to_table_and_start(x64):
    denoise = samplers.denoiser(lambda x, t: 0.8 * jnp.sin(x) + 0.01 * t.astype(x.dtype)[:, None])
    table, x_T = jax.tree.map(jnp.asarray, samplers.ddim(GRID)), jax.random.normal(KEY, (2, 3), float)
    value = lambda table, x_T: (
        samplers.sample(denoise, table, None, (2, 3), x_T=x_T, noise=jnp.zeros((10, 2, 3))) ** 2
    ).sum()
    check_grads(value, (table, x_T), order=1, modes=["rev"], rtol=1e-5)


def test_no_transfers_while_sampling():
    table = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), samplers.ddpm(GRID)))
    go = jax.jit(lambda table, key: samplers.sample(samplers.denoiser(lambda x, t: x), table, key, SHAPE))
    go(table, KEY)
    with jax.transfer_guard("disallow"):
        assert go(table, KEY).shape == SHAPE


def test_show():
    lines = samplers.show(samplers.ddim(grids.from_timesteps(S, [40, 0]), eta=0.0)).splitlines()
    s = grids.from_timesteps(S, [40, 0]).levels
    assert lines[0] == "X <- 1 Z"
    assert (
        lines[1]
        == f"t=  40.000 alpha={s[0].alpha:.5f} sigma={s[0].sigma:.5f}   X <- {s[1].alpha:+.4g} X0 {s[1].sigma:+.4g} EPS"
    )
    assert lines[2].endswith("X <- +1 X0")
    assert "; R1 <- " in samplers.show(heun(GRID))


# --------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.quad, schedules.sigmoid])
@pytest.mark.parametrize("stride", [1, 10, 100])
def test_transition_variance_is_as_exact_as_levels_are(make, stride):
    """Against 1 - prod (1 - beta): levels wrong by a few roundings know it to that times 2 sigma^2 / variance."""
    schedule = make(1000)
    for s, t in grids.from_timesteps(schedule, np.arange(0, 1000, stride)[::-1]).steps():
        first = int(t.time) + 1 if t.sigma else 0
        exact = -expm1(fsum(log1p(-beta) for beta in schedule.betas_float64[first : int(s.time) + 1]))
        error = abs(transition_variance(s, t) / exact - 1)
        assert error < 1e-15 * max(1, 2 * s.sigma**2 / exact), (s.time, error)
        # NumPy rounds a cosine as the processor's vector instructions do: 0.9e-13 on one, 1.06e-13 on another.
        assert error < (1.2e-13 if stride == 1 else 1.1e-14)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_moments_on_gaussian_data(variance):
    """With the exact denoiser every step is affine in a Gaussian, so mean and variance follow a recursion."""
    mean, var = 0.4, 0.3
    grid = grids.leading(S, 10)
    m, v = 0.0, 1.0  # of X, from N(0, 1)
    for s, t in grid.steps():
        beta = 1 - (s.alpha / t.alpha) ** 2
        c1, c2 = beta * t.alpha / s.sigma**2, t.sigma**2 * s.alpha / (s.sigma**2 * t.alpha)
        gain = s.alpha * var / (s.alpha**2 * var + s.sigma**2)  # E[x_0 | x] = mean + gain (x - alpha mean)
        extra = {"fixed_small": t.sigma**2 / s.sigma**2 * beta, "fixed_large": beta}[variance] if t.sigma else 0
        m = c1 * (mean + gain * (m - s.alpha * mean)) + c2 * m
        v = (c1 * gain + c2) ** 2 * v + extra
    n = 100_000
    x = np.asarray(run(samplers.ddpm(grid, variance=variance), gaussian_model(S, mean, var), key=KEY, shape=(n, 1)))
    assert abs(x.mean() - m) < 5 * np.sqrt(v / n)
    assert abs(x.var() - v) < 5 * v * np.sqrt(2 / n)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_moments_on_gaussian_data(eta):
    mean, var = 0.4, 0.3
    m, v = 0.0, 1.0
    for s, t in GRID.steps():
        gain = s.alpha * var / (s.alpha**2 * var + s.sigma**2)
        std2 = eta**2 * t.sigma**2 / s.sigma**2 * (1 - (s.alpha / t.alpha) ** 2)
        along = np.sqrt(t.sigma**2 - std2) / s.sigma
        slope = t.alpha * gain + along * (1 - s.alpha * gain)
        m = (t.alpha - along * s.alpha) * (mean + gain * (m - s.alpha * mean)) + along * m
        v = slope**2 * v + std2
    n = 100_000
    x = np.asarray(run(samplers.ddim(GRID, eta=eta), gaussian_model(S, mean, var), key=KEY, shape=(n, 1)))
    assert abs(x.mean() - m) < 5 * np.sqrt(v / n)
    assert abs(x.var() - v) < 5 * v * np.sqrt(2 / n)


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: samplers.ddim(GRID, eta=1.5), r"eta must lie in \[0, 1\], got 1\.5"),
        (lambda: samplers.ddpm(GRID, variance="small"), r"unknown variance 'small'.*known: fixed_small, fixed_large"),
        (lambda: samplers.denoiser(lambda x, t: x, "epsilon"), r"unknown prediction 'epsilon'"),
        (lambda: samplers.denoiser(lambda x, t: x, clip=-1), r"clip must be positive or None, got -1"),
        (lambda: samplers.denoiser(lambda x, t: x, clip=1, eps_after_clip="old"), r"unknown eps_after_clip 'old'"),
        (lambda: run(samplers.ddim(GRID), key=None, shape=SHAPE), r"key must not be None unless both"),
        (
            lambda: run(samplers.ddim(GRID), key=KEY, shape=SHAPE, x_T=jnp.zeros((1, 2))),
            r"x_T must have shape \(3, 2, 2, 1\)",
        ),
        (
            lambda: run(samplers.ddim(GRID), key=KEY, shape=(2,), noise=jnp.zeros((9, 2))),
            r"shape \(10, 2\), got \(9, 2\)",
        ),
        (lambda: samplers.row(GRID.levels[0], Y=X), r"unknown register 'Y' .*known: X, SAVED"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_z_alone_is_noise():
    @samplers.sampler
    def only_noise(grid):
        yield samplers.row(grid.levels[0], X=Z)

    noise = jax.random.normal(KEY, (1, *SHAPE))
    got = run(only_noise(GRID), key=KEY, shape=SHAPE, noise=noise)
    np.testing.assert_array_equal(got, noise[0])
