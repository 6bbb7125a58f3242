"""Binomial diffusion against exact enumeration of short sequences; probabilities by matrix products and Bayes' rule."""

import doctest
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, xlogy

from ddpm_jax import schedules
from ddpm_jax.special import binomial

RATES = (0.5, 0.2)
S = schedules.from_betas([0.1, 0.3, 0.25, 0.6])
T = S.num_timesteps
STATES = np.array(list(itertools.product((0.0, 1.0), repeat=3)))  # of three bits
# Correlated data: an arbitrary law over the eight states.
DATA = np.array([0.30, 0.02, 0.08, 0.15, 0.05, 0.25, 0.05, 0.10])


def kernel(beta, rate):
    """[x, x'] of one bit, from the definition: kept, or drawn anew."""
    return (1 - beta) * np.eye(2) + beta * np.array([1 - rate, rate])[None]


def on_states(bit):
    """[8, 8] from [2, 2]: bits move independently."""
    return np.kron(np.kron(bit, bit), bit)


def forward(rate):
    """The T one-step matrices of three bits, and the marginals after 0, 1, .., T steps given x_0."""
    steps = [on_states(kernel(beta, rate)) for beta in S.betas_float64]
    return steps, list(itertools.accumulate(steps, np.matmul, initial=np.eye(8)))


def exact_model(rate, data=DATA):
    """model_fn: the true log-odds of every bit of x_0 given x_t, as a table over the eight states."""
    _, marginals = forward(rate)
    joint = np.stack([data[:, None] * m for m in marginals[1:]])  # [T, x_0, x_t]
    one, zero = (np.einsum("txy,xb->tyb", joint, STATES == bit) for bit in (1, 0))
    table = jnp.asarray(np.log(one) - np.log(zero))
    place = jnp.array([4.0, 2.0, 1.0])
    return lambda x, t: table[t.astype(jnp.int32), (x * place[None].astype(x.dtype)).sum(1).astype(jnp.int32)].astype(
        x.dtype
    )


def pairs():
    """All (x_0, x_t) of three bits, [64, 3] each."""
    return jnp.asarray(np.repeat(STATES, 8, 0)), jnp.asarray(np.tile(STATES, (8, 1)))


def exact_terms(model_fn, rate):
    """E over x_0 ~ DATA and x_t ~ q(x_t | x_0) of vlb_term, for every t: nothing is sampled."""
    _, marginals = forward(rate)
    x_0, x_t = pairs()
    for t in range(T):
        ts = jnp.full(64, t)
        output = model_fn(x_t, ts.astype(float))
        term = binomial.vlb_term(S, x_0, x_t, ts, output, rate=rate)
        yield float((DATA[:, None] * marginals[t + 1] * np.asarray(term).reshape(8, 8)).sum())


# ---------------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("rate", RATES)
def test_marginals_are_products_of_kernels(rate, x64):
    x_0, t = jnp.tile(jnp.array([0.0, 1.0]), T)[:, None], jnp.repeat(jnp.arange(T), 2)
    found = np.asarray(binomial.q_marginal(S, x_0, t, rate=rate)).reshape(T, 2)
    step = np.asarray(binomial.q_step(S, x_0, t, rate=rate)).reshape(T, 2)
    product = np.eye(2)
    for k, beta in enumerate(S.betas_float64):
        product = product @ kernel(beta, rate)
        # The tables are float32. Both probabilities: 1 - p alone would say nothing of a small p.
        for logits, expected in ((found[k], product), (step[k], kernel(beta, rate))):
            np.testing.assert_allclose(expit(logits), expected[:, 1], rtol=3e-7)
            np.testing.assert_allclose(expit(-logits), expected[:, 0], rtol=3e-7)


def test_small_probabilities_are_exact():
    # One step of the paper's T = 2000 in float32: a bit flips with probability 1e-4 or 4e-4.
    logits = binomial.q_marginal(schedules.jsd(2000), jnp.array([[0.0], [1.0]]), jnp.zeros(2, jnp.int32), rate=0.2)
    np.testing.assert_allclose(np.exp(np.asarray(logits, float).ravel()), [1e-4 / 0.9999, 0.9996 / 4e-4], rtol=2e-6)


@pytest.mark.parametrize("rate", RATES)
def test_posterior_is_bayes_rule(rate, x64):
    """q(x_{t-1} | x_t, x_0) from the joint of three bits."""
    steps, marginals = forward(rate)
    x_0, x_t = pairs()
    for t in range(T):
        joint = marginals[t][:, :, None] * steps[t][None]  # [x_0, x_{t-1}, x_t]
        posterior = joint / joint.sum(1, keepdims=True)
        expected = np.einsum("xyz,yb->xzb", posterior, STATES)
        found = binomial.q_posterior(S, x_0, x_t, jnp.full(64, t), rate=rate)
        np.testing.assert_allclose(expit(np.asarray(found)).reshape(8, 8, 3), expected, rtol=1e-6, atol=1e-12)
        if t == 0:
            np.testing.assert_array_equal(expit(np.asarray(found)), x_0)


@pytest.mark.parametrize("rate", RATES)
def test_p_step_of_a_perfect_network_is_the_true_reverse_process_bit_by_bit(rate, x64):
    steps, marginals = forward(rate)
    for t in range(T):
        joint = (DATA @ marginals[t])[:, None] * steps[t]  # [x_{t-1}, x_t]
        expected = np.einsum("yz,yb->zb", joint / joint.sum(0), STATES)
        x_t, ts = jnp.asarray(STATES), jnp.full(8, t)
        output = exact_model(rate)(x_t, ts)
        found = binomial.p_step(S, x_t, ts, output, rate=rate)
        np.testing.assert_allclose(expit(np.asarray(found)), expected, rtol=1e-6)
        if t == 0:
            np.testing.assert_allclose(found, output, rtol=1e-12)


def test_p_step_has_a_gradient_everywhere():
    # At t = 0 the posteriors it mixes are certain and their log-odds infinite.
    x_t, t = jnp.array([[0.0, 1.0]] * T), jnp.arange(T)
    gradient = jax.grad(lambda output: binomial.p_step(S, x_t, t, output).sum())(jnp.full((T, 2), 0.3))
    np.testing.assert_allclose(gradient[0], 1, rtol=1e-6)
    assert (np.abs(gradient) > 1e-3).all() and np.isfinite(gradient).all()


def test_kl_is_its_definition(x64):
    p, r = np.array([0.5, 0.2, 0.999, 1e-7, 0.0, 1.0]), np.array([0.3, 0.2, 0.001, 0.4, 0.25, 0.25])
    with np.errstate(divide="ignore"):
        found = binomial.kl_nats(jnp.log(p) - jnp.log1p(-p), jnp.log(r) - jnp.log1p(-r))
    expected = xlogy(p, p) - xlogy(p, r) + xlogy(1 - p, 1 - p) - xlogy(1 - p, 1 - r)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found[-2:], [-np.log(0.75), -np.log(0.25)], rtol=1e-12)


# --------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("rate", RATES)
def test_bound_is_that_of_all_paths(rate, x64):
    """-E_q log p(x_{0..T}) / q(x_{1..T} | x_0), summed over all 8^5 paths, with a p that no data gave."""
    steps, _ = forward(rate)
    model_fn = lambda x, t: 0.7 * jnp.sin(3 * x + t.astype(x.dtype)[:, None]) + x[:, ::-1] - 0.2
    x_T = np.prod(np.where(STATES == 1, rate, 1 - rate), axis=1)
    reverse = []
    for t in range(T):
        logits = binomial.p_step(
            S, jnp.asarray(STATES), jnp.full(8, t), model_fn(jnp.asarray(STATES), jnp.full(8, t)), rate=rate
        )
        one = expit(np.asarray(logits))[:, None]
        reverse.append(np.where(STATES[None] == 1, one, 1 - one).prod(2))  # [x_t, x_{t-1}]
    paths = list(itertools.product(range(8), repeat=T + 1))
    expected = 0.0
    for path in paths:
        q = [steps[t][path[t], path[t + 1]] for t in range(T)]
        p = [reverse[t][path[t + 1], path[t]] for t in range(T)]
        expected += DATA[path[0]] * np.prod(q) * (np.log2(q).sum() - np.log2(p).sum() - np.log2(x_T[path[-1]]))
    prior = float(DATA @ np.asarray(binomial.prior_bits(S, jnp.asarray(STATES), rate=rate)))
    assert prior + sum(exact_terms(model_fn, rate)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_bound_of_a_perfect_network_is_the_entropy_plus_known_gaps(rate, x64):
    """-log p <= H(x_0) + KL(q(x_T) || p(x_T)) + the correlations of the bits of x_{t-1} given x_t, all t."""
    steps, marginals = forward(rate)
    entropy = lambda p, axis: -(xlogy(p, p)).sum(axis) / math.log(2)
    expected = entropy(DATA, 0)
    last = DATA @ marginals[-1]
    expected += (xlogy(last, last) - xlogy(last, np.where(STATES == 1, rate, 1 - rate).prod(1))).sum() / math.log(2)
    for t in range(T):
        joint = (DATA @ marginals[t])[:, None] * steps[t]
        conditional = joint / joint.sum(0)  # [x_{t-1}, x_t]
        one = np.einsum("yz,yb->zb", conditional, STATES)
        apart = entropy(np.stack([one, 1 - one]), 0).sum(1)
        expected += joint.sum(0) @ (apart - entropy(conditional, 0))
    prior = float(DATA @ np.asarray(binomial.prior_bits(S, jnp.asarray(STATES), rate=rate)))
    assert prior + sum(exact_terms(exact_model(rate), rate)) == pytest.approx(expected, rel=1e-6)


def test_bound_is_tight_for_one_bit(x64):
    """Nothing to correlate, and a last beta of 1 forgets x_0: the bound is the entropy."""
    s, bits = schedules.jsd(5), jnp.array([[0.0], [1.0]])
    p_0 = np.array([0.85, 0.15])
    bound = p_0 @ np.asarray(binomial.prior_bits(s, bits))
    assert bound == pytest.approx(0, abs=1e-12)
    product = np.eye(2)
    for t, beta in enumerate(s.betas_float64):
        product = product @ kernel(beta, 0.5)
        joint = p_0[:, None] * product
        odds = jnp.asarray(np.log(joint[1]) - np.log(joint[0]))  # of x_0, given x_t
        x_0, x_t = jnp.repeat(bits, 2, axis=0), jnp.tile(bits, (2, 1))
        terms = binomial.vlb_term(s, x_0, x_t, jnp.full(4, t), jnp.tile(odds, 2)[:, None])
        bound += (joint * np.asarray(terms).reshape(2, 2)).sum()
    assert bound == pytest.approx(-(xlogy(p_0, p_0)).sum() / math.log(2), rel=1e-6)


def test_sampled_bound_is_the_enumerated_one(x64):
    model_fn, rate, n = exact_model(0.2), 0.2, 4000
    key_x, key_u = jax.random.split(jax.random.key(0))
    x_0 = jnp.asarray(STATES)[jax.random.choice(key_x, 8, (n,), p=jnp.asarray(DATA))]
    for t, expected in enumerate(exact_terms(model_fn, rate)):
        u = jax.random.uniform(jax.random.fold_in(key_u, t), x_0.shape)
        found = np.asarray(binomial.vlb(model_fn, S, x_0, jnp.full(n, t), u, rate=rate))
        assert abs(found.mean() - expected) < 5 * found.std() / math.sqrt(n)


# ---------------------------------------------------------------------------------------------------------- sampling


def test_q_sample_has_the_probabilities_of_the_marginal():
    n = 1000
    u = jnp.tile(jnp.asarray((np.arange(n) + 0.5) / n, jnp.float32), 2 * T)[:, None]
    x_0 = jnp.repeat(jnp.tile(jnp.array([0.0, 1.0]), T), n)[:, None]
    t = jnp.repeat(jnp.arange(T), 2 * n)
    x_t = np.asarray(binomial.q_sample(S, x_0, t, u, rate=0.2))
    assert set(np.unique(x_t)) == {0.0, 1.0}
    expected = expit(np.asarray(binomial.q_marginal(S, x_0, t, rate=0.2)).reshape(-1, n)[:, 0])
    np.testing.assert_allclose(x_t.reshape(-1, n).mean(1), expected, atol=0.5 / n + 1e-6)


def test_trajectories_have_the_law_of_p():
    """Every x_t of 20,000 trajectories, against the law by matrix products."""
    model_fn, rate, n = exact_model(0.2), 0.2, 20_000
    sample = jax.jit(lambda key: binomial.trajectory(model_fn, S, key, (n, 3), rate=rate))
    found = np.asarray(sample(jax.random.key(1)))
    assert found.shape == (T + 1, n, 3)
    x_t = jnp.asarray(STATES, jnp.float32)
    law = np.where(STATES == 1, rate, 1 - rate).prod(1)
    for k in range(T + 1):
        shares = np.bincount((found[k] @ [4, 2, 1]).astype(int), minlength=8) / n
        assert (np.abs(shares - law) < 5 * np.sqrt(law * (1 - law) / n)).all(), k
        if k < T:
            ts = jnp.full(8, T - 1 - k)
            one = expit(np.asarray(binomial.p_step(S, x_t, ts, model_fn(x_t, ts), rate=rate), float))[:, None]
            law = law @ np.where(STATES[None] == 1, one, 1 - one).prod(2)
    # Sample i is the same in any batch.
    few = binomial.trajectory(model_fn, S, jax.random.key(1), (5, 3), rate=rate)
    np.testing.assert_array_equal(few, found[:, :5])


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, t: binomial.q_sample(S, x, t, x, rate=0.0), r"rate must lie in \(0, 1\), got 0\.0"),
        (lambda x, t: binomial.q_step(S, x, t, rate=1.5), r"rate must lie in \(0, 1\), got 1\.5"),
        (lambda x, t: binomial.q_marginal(S, x.astype(bool), t), r"x_0 must be \[B, ...\] floating point, got bool"),
        (lambda x, t: binomial.q_posterior(S, x, x[:, :1], t), r"x_t must be like x_0, float32 \(2, 3\)"),
        (lambda x, t: binomial.p_step(S, x, t, x[:, :1]), r"output must be like x_t, float32 \(2, 3\)"),
        (lambda x, t: binomial.q_sample(S, x, t[:1], x), r"t must be \[B\] integers, here \[2\], got int32 \(1,\)"),
    ],
)
def test_errors_come_while_tracing(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))


def test_docstrings_run():
    assert doctest.testmod(binomial).failed == 0
