"""The two experiments of Sohl-Dickstein et al. 2015: what they compare with is right, and their bounds are bounds."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import schedules
from experiments import heartbeat, swiss_roll

# --------------------------------------------------------------------------------------------------------- swiss roll


def test_the_data_by_a_grid():
    """Another quadrature, on a grid of the plane: mass 1, mean 0, variance 1 per dimension, the same entropy."""
    side = np.arange(-2.6, 2.6, 0.6 * swiss_roll.NOISE)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_q = np.concatenate([swiss_roll.log_density(part) for part in np.array_split(x, 20)])
    q = np.exp(log_q) * (side[1] - side[0]) ** 2
    assert q.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(q @ x, 0, atol=1e-6)
    assert q @ (x**2).sum(1) == pytest.approx(2, abs=1e-6)
    assert -(q @ log_q) / math.log(2) == pytest.approx(swiss_roll.entropy_bits(), abs=1e-5)


def test_draws_have_the_density_of_the_entropy():
    x_0, _ = swiss_roll.draw_x_0(jax.random.key(0), 4000)
    bits = -swiss_roll.log_density(np.asarray(x_0, float)) / math.log(2)
    assert abs(bits.mean() - swiss_roll.entropy_bits()) < 5 * bits.std() / math.sqrt(len(bits))


@pytest.mark.slow
def test_perfect_network_obeys_tweedie(x64):
    """E[x_0 | x_t] and Var[x_0 | x_t] by Bayes' rule are the first and second derivatives of log q(x_t)."""
    schedule = swiss_roll.make_schedule(swiss_roll.Settings())
    x_t = jnp.asarray(np.random.RandomState(0).randn(6, 2))
    for t in (1, 12, 20, 39):
        alpha, noise = math.sqrt(schedule.alphas_cumprod_float64[t]), schedule.one_minus_alphas_cumprod_float64[t]
        variance = alpha**2 * swiss_roll.NOISE**2 + noise

        def log_q(x, alpha=alpha, variance=variance):
            squared = ((x[None] - alpha * swiss_roll.CURVE) ** 2).sum(1)
            return jax.nn.logsumexp(np.log(swiss_roll.WEIGHTS) - squared / (2 * variance))

        score = jax.vmap(jax.grad(log_q))(x_t)
        curvature = jax.vmap(lambda x, log_q=log_q: jnp.diag(jax.hessian(log_q)(x)))(x_t)
        mean, spread = (x_t + noise * score) / alpha, noise / alpha**2 * (1 + noise * curvature)
        small, large = schedule.posterior_log_variance_clipped[t], jnp.log(schedule.betas[t])
        expected = jnp.exp(small).astype(float) + schedule.posterior_mean_coef1[t].astype(float) ** 2 * spread
        output = swiss_roll.perfect(schedule)(x_t.astype(jnp.float32), jnp.full(6, t, jnp.float32)).astype(float)
        v, fraction = output[:, :2], (output[:, 2:] + 1) / 2
        # Tables and curve are float32; x_0 from v is a difference, noise and all.
        np.testing.assert_allclose(alpha * x_t - math.sqrt(noise) * v, mean, atol=2e-5)
        log_variance = fraction * large.astype(float) + (1 - fraction) * small.astype(float)
        np.testing.assert_allclose(log_variance, jnp.log(expected), atol=1e-3)


# K's third entropy is -E log p(x_t) for every t only if E |x_0|^2 is 2.
VARIANCES = np.array([1.5, 0.5])


def gaussian_network(schedule):
    """The true p(x_{t-1} | x_t) for x_0 ~ N(0, diag(VARIANCES)), as (v, fraction of the logarithms)."""

    def model_fn(x_t, t):
        s = jnp.asarray(VARIANCES, x_t.dtype)[None]
        at = lambda table: table[t.astype(jnp.int32)].astype(x_t.dtype)[:, None]
        alpha, noise = at(schedule.sqrt_alphas_cumprod), at(schedule.one_minus_alphas_cumprod)
        x_0 = alpha * s / (alpha**2 * s + noise) * x_t
        spread = s * noise / (alpha**2 * s + noise)
        log_variance = jnp.log(at(schedule.posterior_variance) + at(schedule.posterior_mean_coef1) ** 2 * spread)
        small, large = at(schedule.posterior_log_variance_clipped), jnp.log(at(schedule.betas))
        v = (alpha * x_t - x_0) / jnp.sqrt(noise)
        return jnp.concatenate([v, 2 * (log_variance - small) / (large - small) - 1], axis=1)

    return model_fn


def test_K_of_gaussian_data_is_minus_the_entropy_less_known_gaps(x64):
    """The reverse process is exact but at its ends: p(x_T) is N(0, I), and p(x_0 | x_1) is the forward kernel."""
    schedule = swiss_roll.make_schedule(replace(swiss_roll.Settings(), first_beta=0.1, last_log_snr=-2.0))
    betas, noise = schedule.betas_float64, schedule.one_minus_alphas_cumprod_float64
    # A term is quadratic in (x_0, eps), dimension by dimension: four points have its mean over both Gaussians.
    signs = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    times = np.arange(1, schedule.num_timesteps)
    x_0 = jnp.asarray(np.tile(signs[:, :1] * np.sqrt(VARIANCES), (len(times), 1)))
    eps = jnp.asarray(np.tile(np.broadcast_to(signs[:, 1:], (4, 2)), (len(times), 1)), float)
    terms = swiss_roll.term(gaussian_network(schedule), schedule, x_0, jnp.asarray(np.repeat(times, 4)), eps)
    K = swiss_roll.entropies_bits(schedule) - float(np.asarray(terms).reshape(-1, 4).mean(1).sum())

    kl = lambda v_1, v_2, squared: 0.5 * (np.log(v_2 / v_1) + (v_1 + squared) / v_2 - 1) / math.log(2)
    last = VARIANCES * (1 - noise[-1]) + noise[-1]
    first = VARIANCES * (1 - betas[0]) + betas[0]  # of x_1; x_0 given x_1 has mean ratio x_1
    ratio, forward = VARIANCES * math.sqrt(1 - betas[0]) / first, math.sqrt(1 - betas[0])
    gap = kl(last, 1, 0) + kl(VARIANCES * betas[0] / first, betas[0], (ratio - forward) ** 2 * first)
    entropy = 0.5 * np.log2(2 * math.pi * math.e * VARIANCES)
    assert K == pytest.approx(-(entropy + gap).sum(), abs=1e-4)
    assert gap.sum() > 1e-2  # or the line above would not see it


def test_trajectories_of_gaussian_data_are_the_data():
    """The variance of every x_t of the exact reverse process; p(x_0 | x_1) and p(x_T) are off by less than is seen."""
    schedule, n = swiss_roll.make_schedule(swiss_roll.Settings()), 20_000
    model_fn = gaussian_network(schedule)
    found = np.asarray(jax.jit(lambda key: swiss_roll.trajectory(model_fn, schedule, key, n))(jax.random.key(0)))
    assert found.shape == (schedule.num_timesteps + 1, n, 2)
    ac = np.append(1.0, schedule.alphas_cumprod_float64)[::-1, None]
    expected = ac * VARIANCES + 1 - ac
    np.testing.assert_allclose(found.var(axis=1), expected, rtol=5 * math.sqrt(2 / n))
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=5 * math.sqrt(1.5 / n))


# ---------------------------------------------------------------------------------------------------------- heartbeat


def test_perfect_network_is_bayes_rule():
    schedule = schedules.jsd(30)
    x_t = np.asarray(np.random.RandomState(0).rand(7, heartbeat.LENGTH) < 0.3, np.float32)
    for t in (0, 3, 20, 29):
        ac = schedule.alphas_cumprod_float64[t]
        one = heartbeat.DATA * ac + heartbeat.RATE * (1 - ac)
        q = np.where(x_t[:, None] == 1, one, 1 - one).prod(2)  # [7, 5]
        posterior = q / q.sum(1, keepdims=True)
        found = heartbeat.perfect(schedule)(jnp.asarray(x_t), jnp.full(7, float(t)))
        np.testing.assert_allclose(jax.nn.sigmoid(found), posterior @ heartbeat.DATA, rtol=1e-4, atol=1e-6)


def test_first_step_of_the_paper():
    """-E log2 of the forward kernel at (x_0 | x_1), bit by bit: H(X_1 | X_0), as the rate is the mean activity."""
    schedule = schedules.jsd(20)
    stay = 1 - schedule.betas_float64[0]
    rate = heartbeat.RATE
    kernel = stay * np.eye(2) + (1 - stay) * np.array([[1 - rate, rate]])  # [x, x']
    share = np.array([1 - rate, rate])
    bits = -heartbeat.LENGTH * np.einsum("a,ab,ba->", share, kernel, np.log2(kernel))
    assert heartbeat.first_step_bits(schedule) == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("experiment, shape", [(heartbeat, (3, 5, 50)), (swiss_roll, (3, 50))])
def test_total_is_a_sum_of_means_with_its_standard_error(experiment, shape):
    terms = 1 + np.random.RandomState(0).randn(400, *shape)
    sums, errors = np.array([experiment.total(repetition) for repetition in terms]).T
    assert sums.std() == pytest.approx(errors.mean(), rel=0.15)
    assert sums.mean() == pytest.approx(3, abs=0.1)


# ------------------------------------------------------------------------------------------------------- whole, small
# Lower bounds on what a network reaches in its 300 steps: after one step it is below -15 bits, and below -35.


@pytest.mark.campaign
def test_swiss_roll_runs(tmp_path, capsys, optax_promotes):
    found = swiss_roll.main(replace(swiss_roll.smoke, out=tmp_path / "new" / "roll.png"))
    assert (tmp_path / "new" / "roll.png").stat().st_size > 10_000
    entropy = swiss_roll.entropy_bits()
    for bits, error in found.values():
        assert math.isfinite(bits) and bits <= -entropy + 5 * error
    assert swiss_roll.NULL_BITS - 2 < found["this network"][0] < found["perfect network"][0]
    printed = capsys.readouterr().out
    assert f"minus the entropy {-entropy:10.3f}" in printed and "lost by this network" in printed


@pytest.mark.campaign
def test_heartbeat_runs(tmp_path, capsys, optax_promotes):
    found = heartbeat.main(replace(heartbeat.smoke, out=tmp_path / "heartbeat.png"))
    assert (tmp_path / "heartbeat.png").stat().st_size > 10_000
    assert len(found) == 4
    for bits, error in found.values():
        assert math.isfinite(bits) and bits <= heartbeat.TRUE_BITS + 5 * error
    for form in ("bound", "K"):
        assert heartbeat.NULL_BITS + 4 < found[f"{form}, this network"][0] < found[f"{form}, perfect network"][0]
    printed = capsys.readouterr().out
    assert "50 samples" in printed and f"{heartbeat.TRUE_BITS:.3f}" in printed


@pytest.mark.parametrize("experiment", [heartbeat, swiss_roll])
def test_experiments_say_what_they_are(experiment):
    assert all(f"\n{word}:" in experiment.__doc__ for word in ("Run", "Needs", "Expect", "Measured"))
    assert "@@" not in experiment.__doc__
