"""Every sampler of the catalogue with every prediction and with learned variances, as a run's configuration asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build, process, samplers, schedules
from ddpm_jax.config.run import ObjectiveConfig
from ddpm_jax.samplers.catalogue import CATALOGUE, make_table
from tests.helpers import relative

S = schedules.linear(200, beta_end=0.1)
KEY, SHAPE, CALLS = jax.random.key(0), (2, 3), 40
LEARNED = [name for name, entry in CATALOGUE.items() if entry.variance is not None]
PREDICTIONS = ("eps", "x_0", "v", "x_prev", "score")


def between_timesteps(table):
    return (table.rows.time % 1 != 0).any()


def network(prediction):
    """The same opinion about x_0 in the terms of every prediction; for whole t."""
    alphas = jnp.asarray(np.sqrt(S.alphas_cumprod_float64))
    sigmas = jnp.asarray(np.sqrt(S.one_minus_alphas_cumprod_float64))

    def model_fn(x, t):
        t = t.astype(jnp.int32)
        x_0 = 0.7 * jnp.tanh(x) + 0.1
        eps = (x - alphas[t][:, None] * x_0) / sigmas[t][:, None]
        return process.target(S, x_0, t, eps, prediction=prediction)

    return model_fn


EDM = ObjectiveConfig(loss="edm", sigma_data=0.7)


def edm_network():
    """The opinion of `network` as EDM's network says it: x_0 = c_skip x / alpha + c_out F(c_in x / alpha)."""
    opinion = network("x_0")

    def model_fn(scaled, t):
        index = t.astype(jnp.int32)
        alpha, sigma = (
            jnp.asarray(np.sqrt(table))[index][:, None]
            for table in (S.alphas_cumprod_float64, S.one_minus_alphas_cumprod_float64)
        )
        std = jnp.sqrt(sigma**2 + (0.7 * alpha) ** 2)
        x = scaled * std
        c_skip, c_out = 0.49 * alpha / std**2, 0.7 * sigma / std  # of x = alpha (x / alpha)
        return (opinion(x, t) - c_skip * x) / c_out

    return model_fn


def runner(model_fn, objective, clip):
    """run(table): float64, one compilation for all tables."""
    denoise = build.make_reading(objective, clip).denoiser(S)(model_fn)
    x_T = jax.random.normal(KEY, SHAPE, float)
    go = jax.jit(lambda table, n: samplers.sample(denoise, table, KEY, SHAPE, x_T=x_T, num_calls=n))
    padded = lambda table: jax.tree.map(jnp.asarray, samplers.pad(table, CALLS))
    return lambda table: np.asarray(go(padded(table), jnp.int32(table.num_calls)))


@pytest.mark.slow
def test_every_sampler_with_every_prediction(x64):
    """The same samples, where the network is called at timesteps; finite ones where a grid goes between them."""
    tables = {name: make_table(name, S, 9) for name in CATALOGUE if name not in LEARNED}
    # Without clipping, what is not finite would be seen.
    runs = {p: runner(network(p), ObjectiveConfig(prediction=p), None) for p in PREDICTIONS}
    runs["edm"] = runner(edm_network(), EDM, None)
    compared = 0
    for name, table in tables.items():
        found = {p: run(table) for p, run in runs.items()}
        if between_timesteps(table):
            assert all(np.isfinite(x).all() for x in found.values()), name
            continue
        compared += 1
        for p in list(runs)[1:]:
            # The schedule's float32 tables: 6e-8, times up to 1 / alpha = 13.
            assert relative(found[p], found["eps"]) < 5e-5, (name, p)
    assert compared >= 15


def test_edm_in_the_terms_of_the_process(x64):
    """What likelihoods ask a network trained with objectives.edm: the same x_0 at every t."""
    x_0, t = jax.random.normal(KEY, (200, 3), float), jnp.arange(200)
    model_fn, prediction, _ = build.make_reading(EDM).in_process_terms(edm_network(), S)
    assert prediction == "x_0"
    time = t.astype(jnp.float32)
    assert relative(model_fn(x_0, time), network("x_0")(x_0, time)) < 1e-6
    untouched = network("v")
    found = build.make_reading(ObjectiveConfig(prediction="v")).in_process_terms(untouched, S)
    assert found == (untouched, "v", "fixed_large")


def test_a_variance_beside_the_mean_stays(x64):
    """x_prev with a learned variance: the second half of the output passes x_0_from_mean untouched."""
    both = lambda p: lambda x, t: jnp.concatenate([network(p)(x, t), jnp.sin(x)], axis=-1)
    table = make_table("ddpm_learned_range", S, 9, variance="learned_range")
    objective = lambda p: ObjectiveConfig(loss="hybrid", variance="learned_range", prediction=p)
    found = {p: runner(both(p), objective(p), 1.0)(table) for p in ("eps", "x_prev")}
    assert relative(found["x_prev"], found["eps"]) < 5e-5
    without = lambda x, t: jnp.concatenate([network("eps")(x, t), 0 * x], axis=-1)
    assert relative(runner(without, objective("eps"), 1.0)(table), found["eps"]) > 0.01


def test_another_sampler_ignores_a_learned_variance(x64):
    both = lambda x, t: jnp.concatenate([network("eps")(x, t), jnp.sin(x)], axis=-1)
    run = runner(both, ObjectiveConfig(loss="hybrid", variance="learned_range"), 1.0)
    plain = runner(network("eps"), ObjectiveConfig(), 1.0)
    for name in ("ddpm_large", "ddpm_small", "ddim", "dpm_solver_pp_2m_sde"):
        table = make_table(name, S, 9, variance="learned_range")
        np.testing.assert_allclose(run(table), plain(table), rtol=1e-12)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_variance_that_was_not_learned_is_refused(name, variance):
    needed = CATALOGUE[name].variance
    message = rf"sampler '{name}' needs a network whose variance is '{needed}' .* got one with '{variance}'"
    with pytest.raises(ValueError, match=message):
        make_table(name, S, 9, variance=variance)
    other = {"learned": "learned_range", "learned_range": "learned"}[needed]
    with pytest.raises(ValueError, match=f"is '{needed}' .* got one with '{other}'"):
        make_table(name, S, 9, variance=other)
