"""How t is drawn: laws, weights, the history of losses against OpenAI's, independence of the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, norm

from ddpm_jax import schedules, timesteps
from tests.helpers import golden

S = schedules.linear(8)
KEY = jax.random.key(3)


def key_of(key):
    """The key of example i, as the train step makes it."""
    return lambda i: jax.random.split(jax.random.fold_in(key, i), 3)[0]


remember = jax.jit(timesteps.remember)


def batches(sampler, state, number, size):
    """t and weights of many batches, [number, size]."""
    indices = jnp.arange(size, dtype=jnp.uint32)
    one = lambda key: sampler.draw(state, key_of(key), indices, size)
    return jax.jit(jax.vmap(one))(jax.random.split(KEY, number))


def filled(losses):
    """A history that is full: every loss of t is losses[t]."""
    losses = jnp.asarray(losses, jnp.float32)
    return timesteps.History(jnp.tile(losses[:, None], (1, 10)), jnp.full(len(losses), 10, jnp.int32))


STEEP = np.geomspace(100.0, 1e-3, 8)
ALL = ("uniform", "antithetic", "stratified", "importance", "lognormal")


def state_of(name):
    return filled(STEEP) if name == "importance" else timesteps.make(name, S).init()


# ---------------------------------------------------------------------------------------------------------- all five


@pytest.mark.parametrize("name", ALL)
def test_a_draw_does_not_depend_on_who_makes_it(name):
    """Halves and quarters of a batch, drawn apart, are the batch, bit for bit."""
    sampler, state = timesteps.make(name, S), state_of(name)
    draw = jax.jit(lambda indices: sampler.draw(state, key_of(KEY), indices, 24))
    indices = np.arange(24, dtype=np.uint32)
    whole = draw(indices)
    for n in (2, 4):
        parts = [draw(part) for part in np.split(indices, n)]
        for i in (0, 1):
            np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    assert whole.t.dtype == jnp.int32 and whole.weight.dtype == jnp.float32


@pytest.mark.parametrize("name", ALL[:4])
def test_the_weighted_mean_is_unbiased(name):
    """E[weight L_t] over batches is the mean of L_t over t, for a fixed profile of losses."""
    profile = np.array([7.0, 0.3, 2.0, 5.0, 0.01, 1.0, 40.0, 3.0])
    t, weight = batches(timesteps.make(name, S), state_of(name), 20_000, 6)
    estimates = np.mean(np.asarray(weight, float) * profile[np.asarray(t)], axis=1)
    error = estimates.mean() - profile.mean()
    assert abs(error) < 5 * estimates.std() / np.sqrt(len(estimates)), (error, estimates.std())


@pytest.mark.parametrize("name", ("uniform", "antithetic", "stratified"))
@pytest.mark.parametrize("length", (8, 37))
def test_every_example_is_uniform(name, length):
    t, weight = batches(timesteps.make(name, schedules.linear(length, beta_end=0.5)), (), 40_000, 5)
    for column in np.asarray(t).T:
        assert chisquare(np.bincount(column, minlength=length)).pvalue > 1e-4
    assert (weight == 1).all()


def test_uniform_is_the_draw_of_each_examples_key():
    """What runs that were trained before samplers of t existed drew."""
    expected = [int(jax.random.randint(key_of(KEY)(i), (), 0, 1000)) for i in range(6)]
    sampler = timesteps.uniform(schedules.linear())
    assert list(sampler.draw((), key_of(KEY), jnp.arange(6, dtype=jnp.uint32), 6).t) == expected


def test_antithetic_pairs():
    t = np.asarray(batches(timesteps.antithetic(S), (), 50, 7).t)
    np.testing.assert_array_equal(t[:, 0:6:2] + t[:, 1:6:2], 7)
    assert len({tuple(row) for row in t}) > 40


def test_stratified_has_one_draw_in_every_stratum():
    t = np.asarray(batches(timesteps.stratified(schedules.linear(64)), (), 200, 16).t)
    np.testing.assert_array_equal(np.sort(t // 4, axis=1), np.tile(np.arange(16), (200, 1)))
    assert len(set(t[:, 0])) > 40  # and the strata wander over the examples


def test_the_spread_of_a_smooth_loss():
    """L = 9 u^2 at t = u T, batches of 16: closed forms of the standard deviation of a batch's mean."""
    schedule, loss = schedules.linear(1000), 9 * np.linspace(0, 1, 1000) ** 2
    expected = {"uniform": 9 * np.sqrt(4 / 45 / 16), "antithetic": 9 / np.sqrt(180 * 8), "stratified": 9 / 16 / 12**0.5}
    for name, std in expected.items():
        t = np.asarray(batches(timesteps.make(name, schedule), (), 2000, 16).t)
        assert loss[t].mean(axis=1).std() == pytest.approx(std, rel=0.08), name


# --------------------------------------------------------------------------------------------------------- lognormal


def test_lognormal_is_the_law_of_sigma():
    schedule = schedules.cosine(1000)
    t = np.asarray(batches(timesteps.lognormal(schedule, mean=-0.5, std=0.8), (), 200, 500).t).ravel()
    log_sigma = -0.5 * np.asarray(schedule.log_snr, float)[t]
    # 1000 levels between which 100,000 draws are spread: the law is seen to its standard error.
    assert abs(log_sigma.mean() + 0.5) < 5 * 0.8 / np.sqrt(t.size) + 1e-3
    assert abs(log_sigma.std() / 0.8 - 1) < 5 / np.sqrt(2 * t.size) + 1e-3
    for q in (0.05, 0.3, 0.7, 0.95):
        assert abs(np.quantile(log_sigma, q) - (norm.ppf(q) * 0.8 - 0.5)) < 0.02


def test_lognormal_beyond_the_schedule_goes_to_its_ends():
    schedule = schedules.zero_terminal_snr(schedules.linear(10, beta_end=0.3))
    found = lambda mean: set(np.asarray(batches(timesteps.lognormal(schedule, mean=mean), (), 50, 20).t).ravel())
    assert found(-30.0) == {0} and found(30.0) == {8}  # at t = 9 sigma / alpha is infinite


# -------------------------------------------------------------------------------------------------------- importance


def test_the_history_is_openais():
    """Losses in order, several of one t in a batch, more than fit, in float32."""
    arrays, meta = golden("openai/loss_second_moment_resampler")
    state = timesteps.importance(schedules.linear(meta["num_timesteps"])).init()
    seen = set()
    for i, (t, losses) in enumerate(zip(arrays["ts"], arrays["losses"], strict=True)):
        state = remember(state, jnp.asarray(t, jnp.int32), jnp.asarray(losses, jnp.float32))
        np.testing.assert_array_equal(state.counts, arrays["loss_counts"][i])
        np.testing.assert_allclose(state.losses, arrays["loss_history"][i], rtol=1e-7)
        assert bool(timesteps.warmed_up(state)) == arrays["warmed_up"][i]
        expected = arrays["weights"][i] / arrays["weights"][i].sum()
        np.testing.assert_allclose(timesteps.probabilities(state, 0.001), expected, rtol=1e-6)
        seen.add(bool(arrays["warmed_up"][i]))
    assert seen == {False, True}
    t = arrays["sample_indices"]
    weight = 1 / (8 * np.asarray(timesteps.probabilities(state, 0.001))[t])
    np.testing.assert_allclose(weight, arrays["sample_weights"], rtol=2e-6)


def test_a_batch_is_its_losses_one_after_the_other():
    """Against the plain loop, with a batch that overflows some histories on its own."""
    rng = np.random.RandomState(0)
    state, loop = timesteps.importance(S, history=3).init(), [[] for _ in range(8)]
    for size in (1, 5, 30, 64, 2):
        t, losses = rng.randint(0, 5, size), rng.rand(size)
        state = remember(state, jnp.asarray(t, jnp.int32), jnp.asarray(losses, jnp.float32))
        for s, loss in zip(t, losses, strict=True):
            loop[s] = [*loop[s], loss][-3:]
        for s in range(8):
            assert state.counts[s] == len(loop[s])
            np.testing.assert_allclose(state.losses[s], [*loop[s], 0, 0, 0][:3], rtol=1e-6)


@pytest.mark.parametrize("length", (8, 4000))
def test_importance_draws_what_it_says(length):
    """Frequencies against p, and the weight against 1 / (T p), where some t are ten thousand times rarer."""
    state = filled(np.geomspace(1e4, 1e-4, length) if length > 8 else STEEP)
    sampler = timesteps.importance(schedules.linear(length, beta_end=0.01), uniform_share=0.01)
    p = np.asarray(timesteps.probabilities(state, 0.01), float)
    t, weight = (np.asarray(a).ravel() for a in batches(sampler, state, 100, 1000))
    groups = np.arange(length) * 8 // length
    counts = np.bincount(groups[t], minlength=8)
    assert chisquare(counts, t.size * np.bincount(groups, p) / p.sum()).pvalue > 1e-4
    np.testing.assert_allclose(weight, 1 / (length * p[t]), rtol=1e-3)  # tickets are whole numbers: p to 1e-3
    assert weight.mean() == pytest.approx(1, abs=5 * weight.std() / np.sqrt(t.size))


def test_importance_lowers_the_variance_of_a_steep_loss():
    state = filled(STEEP)
    spread = {}
    for name, s in (("uniform", ()), ("importance", state)):
        t, weight = batches(timesteps.make(name, S), s, 2000, 16)
        spread[name] = np.mean(np.asarray(weight, float) * STEEP[np.asarray(t)], axis=1).std()
    assert spread["importance"] < 0.1 * spread["uniform"], spread


@pytest.mark.slow
def test_until_every_t_has_its_losses_t_is_uniform():
    t = jnp.tile(jnp.arange(8, dtype=jnp.int32), 10)[:-1]  # one loss is missing
    sampler = timesteps.importance(S)
    state = sampler.update(sampler.init(), t, jnp.asarray(STEEP, jnp.float32)[t])
    drawn, weight = batches(sampler, state, 4000, 5)
    assert chisquare(np.bincount(np.asarray(drawn).ravel(), minlength=8)).pvalue > 1e-4
    assert (weight == 1).all()
    state = sampler.update(state, jnp.full(1, 7, jnp.int32), jnp.ones(1))
    assert not (batches(sampler, state, 10, 5).weight == 1).any()


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "attempt, message",
    [
        (lambda make: make("importence"), r"unknown timestep sampler 'importence'; did you mean 'importance'"),
        (lambda make: make("uniform", history=3), r"timestep sampler 'uniform' takes no arguments, got 'history'"),
        (lambda make: make("lognormal", sigma=3), r"'lognormal' takes mean, std, got 'sigma'"),
        (lambda make: make("lognormal", std=0), r"std must be positive, got 0"),
        (lambda make: make("importance", history=2.5), r"history must be a whole number in \[1, 65536\], got 2.5"),
        (lambda make: make("importance", history=0), r"history must be a whole number in \[1, 65536\], got 0"),
        (lambda make: make("importance", uniform_share=0), r"uniform_share must lie in \(0, 1\], got 0"),
    ],
)
def test_bad_arguments(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt(functools.partial(timesteps.make, schedule=S))
