"""Gaussian diffusion of a swiss roll, Sohl-Dickstein et al. 2015 (arXiv:1503.03585), sections 3.1.1 and D.1.1.

2-D data whose density is known, trained on the whole bound K on its log-likelihood (eq. 14):
  K = -sum over t > 1 of E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) + H(X_T | X_0) - H(X_1 | X_0) - H_p(X_T)
The paper counts t from 1. The first step of p is the forward kernel (eq. 44), and x_0 has variance 1 per dimension, or
the last entropy would be another. T = 40, a learned mean and a learned diagonal covariance, and a small constant for
beta_1 are the paper's. Not the paper's: its roll is not specified, here it is a curve and Gaussian noise of 0.05; it
learns the other betas, here log_snr is linear in t; its network has 16 radial basis functions, here an MLP.
A perfect network knows mean and variance of x_{t-1} given x_t; what still parts it from the truth is that 40 steps of
diagonal Gaussians cannot reverse the diffusion exactly.

Run:       python experiments/swiss_roll.py            (writes runs/swiss_roll.png; --help lists the settings)
Needs:     2 CPU cores, 1 minute; 2 or 3 beside other jobs
Expect:    K = 2.35 bits, 6.45 above an isotropic Gaussian (paper, table 1): the entropy of its roll is below -2.35
           bits. That of this one, by quadrature, is 1.391 bits: no K can be above -1.391, 2.703 above the Gaussian
Measured:  K -1.600 ± 0.014, 2.494 above an isotropic Gaussian. A perfect network: -1.584 ± 0.014; on the same draws
           this network loses 0.0160 ± 0.0008. 136 s in all, 41 s of CPU time. Picture: docs/swiss_roll.png
           2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, other jobs running.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from flax import linen as nn
from scipy.special import logsumexp

from ddpm_jax import keys, process, schedules
from ddpm_jax.models import bind
from ddpm_jax.process import ModelFn
from ddpm_jax.schedules import Schedule
from ddpm_jax.special import gaussians

NOISE = 0.05  # standard deviation across the curve, where the data has 1 per dimension
THETA = 1.5 * math.pi, 4.5 * math.pi
NULL_BITS = -math.log2(2 * math.pi * math.e)  # of N(0, I)
HOW: Any = {"prediction": "v", "variance": "learned_range"}  # what the network predicts


@dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    num_timesteps: int = 40
    first_beta: float = 1e-4
    last_log_snr: float = -6.0
    hidden: int = 64
    num_steps: int = 24_000
    batch_size: int = 512
    learning_rate: float = 4e-3
    num_draws: int = 20_000  # of (x_0, x_t), for every t
    num_samples: int = 2000
    seed: int = 0
    out: Path = Path("runs/swiss_roll.png")


smoke = Settings(num_timesteps=8, hidden=16, num_steps=300, batch_size=50, num_draws=200, num_samples=50)


# ------------------------------------------------------------------------------------------------------------ the data


def spiral(theta: Any) -> np.ndarray:
    return np.stack([theta * np.cos(theta), theta * np.sin(theta)], axis=-1)


def scaled_curve(num_nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(theta, c(theta), weight), Gauss-Legendre: c + NOISE z has mean 0 and variance 1 per dimension."""
    node, weight = np.polynomial.legendre.leggauss(num_nodes)
    theta, weight = THETA[0] + (THETA[1] - THETA[0]) * (node + 1) / 2, weight / 2
    curve = spiral(theta)
    curve = curve - weight @ curve
    return theta, curve * math.sqrt((2 - 2 * NOISE**2) / (weight @ (curve**2).sum(1))), weight


NODES, CURVE, WEIGHTS = scaled_curve(800)  # closer to each other than NOISE


def draw_x_0(key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """(x_0 [num, 2], theta [num]): a point of the curve, theta uniform, plus NOISE z."""
    key_theta, key_z = jax.random.split(key)
    theta = jax.random.uniform(key_theta, (num,), minval=THETA[0], maxval=THETA[1])
    on_curve = jnp.stack([jnp.interp(theta, NODES, CURVE[:, k]) for k in (0, 1)], axis=1)
    return on_curve + NOISE * jax.random.normal(key_z, (num, 2)), theta


def entropy_bits(num_hermite: int = 6) -> float:
    """-E log2 q(x_0): quadrature over theta (Gauss-Legendre) and both coordinates of z (Gauss-Hermite), float64."""
    z, weight = np.polynomial.hermite_e.hermegauss(num_hermite)
    weight = weight / weight.sum()
    result = 0.0
    for z_1, weight_1 in zip(z, weight, strict=True):
        for z_2, weight_2 in zip(z, weight, strict=True):
            result -= weight_1 * weight_2 * (WEIGHTS @ log_density(CURVE + NOISE * np.array([z_1, z_2])))
    return result / math.log(2)


def log_density(x: np.ndarray) -> np.ndarray:
    """log q(x_0 = x), nats, [N, 2] -> [N]; float64."""
    squared = ((x[:, None] - CURVE) ** 2).sum(axis=2)
    return logsumexp(-squared / (2 * NOISE**2), axis=1, b=WEIGHTS) - math.log(2 * math.pi * NOISE**2)


# -------------------------------------------------------------------------------------------------- the two processes


def make_schedule(settings: Settings) -> Schedule:
    """beta_1 = first_beta, then log_snr linear in t down to last_log_snr."""
    log_snr = np.linspace(
        math.log(1 / settings.first_beta - 1), settings.last_log_snr, settings.num_timesteps, dtype=np.float64
    )
    alphas_cumprod = 1 / (1 + np.exp(-log_snr))
    return schedules.from_betas(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))


class MLP(nn.Module):
    """(v, variance) of both dimensions: three hidden layers that see x_t, each shifted by a learned row for t."""

    hidden: int
    num_timesteps: int

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        h = x_t
        for _ in range(3):
            shift = nn.Embed(self.num_timesteps, self.hidden)(t.astype(jnp.int32))
            h = nn.silu(nn.Dense(self.hidden)(h) + shift)
        return nn.Dense(4)(h)


def perfect(schedule: Schedule) -> ModelFn:
    """True mean and variance of x_{t-1} given x_t, by Bayes' rule over the curve. No diagonal Gaussian is better."""
    curve, log_weights = jnp.asarray(CURVE, jnp.float32), jnp.asarray(np.log(WEIGHTS), jnp.float32)

    def one(x_t: jax.Array, t: jax.Array) -> jax.Array:
        alpha, noise = schedule.sqrt_alphas_cumprod[t], schedule.one_minus_alphas_cumprod[t]
        variance = alpha**2 * NOISE**2 + noise  # of x_t, given the point on the curve
        residual = x_t[None] - alpha * curve
        posterior = jax.nn.softmax(log_weights - (residual**2).sum(1) / (2 * variance))
        means = curve + alpha * NOISE**2 / variance * residual  # of x_0, given the point
        mean = posterior @ means
        spread = NOISE**2 * noise / variance + posterior @ (means - mean[None]) ** 2
        log_variance = jnp.log(schedule.posterior_variance[t] + schedule.posterior_mean_coef1[t] ** 2 * spread)
        small, large = schedule.posterior_log_variance_clipped[t], jnp.log(schedule.betas[t])
        v = (alpha * x_t - mean) / jnp.sqrt(noise)
        return jnp.concatenate([v, 2 * (log_variance - small) / (large - small) - 1])

    return lambda x_t, t: jax.vmap(one)(x_t, t.astype(jnp.int32))


def term(model_fn: ModelFn, schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at x_t = q_sample(x_0, t, eps), bits, [B]; t > 0."""
    x_t = process.q_sample(schedule, x_0, t, eps)
    p = process.p_mean_variance(schedule, x_t, t, model_fn(x_t, t.astype(jnp.float32)), clip=None, **HOW)
    q = process.q_posterior(schedule, x_0, x_t, t)
    return gaussians.kl_nats(q.mean, q.log_variance, p.mean, p.log_variance).sum(axis=1) / math.log(2)


def entropies_bits(schedule: Schedule) -> float:
    """H(X_T | X_0) - H(X_1 | X_0) - H_p(X_T) of eq. 14, two dimensions."""
    entropy = lambda variance: math.log2(2 * math.pi * math.e * variance)
    noise = schedule.one_minus_alphas_cumprod_float64
    return entropy(noise[-1]) - entropy(noise[0]) - entropy(1)


def trajectory(model_fn: ModelFn, schedule: Schedule, key: jax.Array, num: int) -> jax.Array:
    """x_T, .., x_1, x_0, [T + 1, num, 2]: a sample of p, whose last step is the forward kernel."""
    key_T, key_0, key = jax.random.split(key, 3)

    def step(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, ts = jax.random.normal(jax.random.fold_in(key, t), x_t.shape), jnp.full(num, t)
        x_prev = process.p_step(schedule, x_t, ts, model_fn(x_t, ts.astype(jnp.float32)), z, clip=None, **HOW)
        return x_prev, x_prev

    x_T = jax.random.normal(key_T, (num, 2))
    x_1, rest = jax.lax.scan(step, x_T, jnp.arange(schedule.num_timesteps - 1, 0, -1))
    x_0 = process.q_sample(schedule, x_1, jnp.zeros(num, jnp.int32), jax.random.normal(key_0, (num, 2)))
    return jnp.concatenate([x_T[None], rest, x_0[None]])


# ------------------------------------------------------------------------------------------------------------- the run


def fit(settings: Settings, schedule: Schedule) -> ModelFn:
    """The network that maximizes K: minimizes (T - 1) E_t [term], t uniform in 1 .. T - 1; one scan."""
    model = MLP(settings.hidden, settings.num_timesteps)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps))
    key_init, key_steps = jax.random.split(keys.make(settings.seed))

    def loss(params: Any, key: jax.Array) -> jax.Array:
        key_x, key_t, key_eps = jax.random.split(key, 3)
        x_0, _ = draw_x_0(key_x, settings.batch_size)
        t = jax.random.randint(key_t, (len(x_0),), 1, schedule.num_timesteps)
        terms = term(bind(model, params), schedule, x_0, t, jax.random.normal(key_eps, x_0.shape))
        return (schedule.num_timesteps - 1) * terms.mean()

    def step(state: tuple[Any, Any], k: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, jax.random.fold_in(key_steps, k)), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = model.init(key_init, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(settings.num_steps))[0])
    return bind(model, run((params, optimizer.init(params)))[0])


def draw_terms(model_fn: ModelFn, schedule: Schedule, key: jax.Array, num_draws: int) -> np.ndarray:
    """Terms of the bound, bits, [T - 1, num_draws], at new (x_0, eps) for every t > 0."""

    def at(t: jax.Array) -> jax.Array:
        key_x, key_eps = jax.random.split(jax.random.fold_in(key, t))
        x_0, _ = draw_x_0(key_x, num_draws)
        return term(model_fn, schedule, x_0, jnp.full(num_draws, t), jax.random.normal(key_eps, x_0.shape))

    return np.asarray(jax.jit(lambda: jax.lax.map(at, jnp.arange(1, schedule.num_timesteps)))())


def total(terms: np.ndarray) -> tuple[float, float]:
    """Sum over t of the means, and its standard error; no draw is used twice."""
    terms = terms.astype(np.float64)
    return float(terms.mean(axis=1).sum()), math.sqrt(terms.var(axis=1, ddof=1).sum() / terms.shape[1])


def nearest_theta(x: np.ndarray) -> np.ndarray:
    """theta of the node of the curve next to each point."""
    return NODES[((x[:, None] - CURVE) ** 2).sum(axis=2).argmin(axis=1)]


def picture(
    model_fn: ModelFn, schedule: Schedule, samples: np.ndarray, terms: dict[str, np.ndarray], path: Path
) -> None:
    """Figure 1 of the paper: forward process, reverse process, drift of the reverse process; and the bound's terms."""
    num_timesteps, num = schedule.num_timesteps, samples.shape[1]
    times = [round(num_timesteps * fraction) for fraction in (0, 0.35, 0.5, 0.65, 1)]
    figure, grid = plt.subplots(3, len(times), figsize=(13, 7.9), layout="constrained")
    x_0, theta = draw_x_0(keys.make(0), num)
    eps = jax.random.normal(keys.make(1), x_0.shape)
    dots: Any = {"s": 3, "cmap": "turbo", "vmin": THETA[0], "vmax": THETA[1], "linewidths": 0, "alpha": 0.8}
    for column, time in enumerate(times):
        x_t = process.q_sample(schedule, x_0, jnp.full(num, time - 1), eps) if time else x_0
        grid[0][column].set_title(f"t = {time}" if time else "t = 0, the data")
        grid[0][column].scatter(*x_t.T, c=theta, **dots)
        grid[1][column].scatter(*samples[num_timesteps - time].T, c=nearest_theta(samples[-1]), **dots)
        if time > 1:
            draw_drift(grid[2][column], model_fn, schedule, time - 1)
    for axes in (*grid[0], *grid[1], *grid[2][1:]):
        axes.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), xticks=[], yticks=[], aspect="equal")
    for axes, name in zip((*grid[:2, 0], grid[2][1]), ("forward  q", "reverse  p", "drift"), strict=True):
        axes.set_ylabel(name)
    for (name, draws), style in zip(terms.items(), ("o-", "--"), strict=True):
        grid[2][0].plot(np.arange(2, num_timesteps + 1), draws.mean(axis=1), style, label=name, markersize=3)
    grid[2][0].set(xlabel="t", ylabel="KL of the step, bits", ylim=(0, None), box_aspect=1)
    grid[2][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_drift(axes: Any, model_fn: ModelFn, schedule: Schedule, t: int) -> None:
    """The direction of E_p[x_{t-1} | x_t] - x_t, coloured by its length, over the curve of the data."""
    side = np.linspace(-2.6, 2.6, 17)
    mesh = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    ts = jnp.full(len(mesh), t)
    output = model_fn(mesh, ts.astype(jnp.float32))
    drift = np.asarray(process.p_mean_variance(schedule, mesh, ts, output, clip=None, **HOW).mean - mesh)
    length = np.linalg.norm(drift, axis=1, keepdims=True)
    axes.plot(*CURVE.T, color="0.8", linewidth=4, zorder=0)
    axes.quiver(*mesh.T, *(drift / length).T, np.log(length), cmap="viridis", scale=22, width=0.006, pivot="mid")


def main(settings: Settings) -> dict[str, tuple[float, float]]:
    """Train, measure, draw; returns the bounds it prints."""
    schedule = make_schedule(settings)
    model_fn = fit(settings, schedule)
    key_draws, key_samples = jax.random.split(keys.make(settings.seed + 1))
    networks = {"this network": model_fn, "perfect network": perfect(schedule)}
    terms = {name: draw_terms(f, schedule, key_draws, settings.num_draws) for name, f in networks.items()}
    run = jax.jit(lambda key: trajectory(model_fn, schedule, key, settings.num_samples))
    picture(model_fn, schedule, np.asarray(run(key_samples)), terms, settings.out)

    found = {name: (entropies_bits(schedule) - total(draws)[0], total(draws)[1]) for name, draws in terms.items()}
    print("log2 p(x_0), bits, mean over the data")
    print(f"  truth, minus the entropy {-entropy_bits():10.3f}")
    for name, (bits, error) in found.items():
        print(f"  K, {name:22}{bits:10.3f} ± {error:.3f}   {bits - NULL_BITS:.3f} above an isotropic Gaussian")
    lost, error = total(terms["this network"] - terms["perfect network"])
    print(f"  lost by this network     {lost:10.4f} ± {error:.4f}")
    print(settings.out)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
