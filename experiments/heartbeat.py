"""Binomial diffusion of a heartbeat, Sohl-Dickstein et al. 2015 (arXiv:1503.03585), sections 3.1.2 and D.1.2.

Binary sequences of length 20 with a 1 in every fifth bin, the first one anywhere in the first five: five sequences, so
the true log-likelihood is log2(1/5). T = 2000, beta_t = 1 / (T - t + 1) and p(x_T) = B(0.2), the data's mean activity,
are the paper's. Its network, three hidden layers of 50, predicts x_{t-1} with a read-out of its own for every t; this
one, three of 128, is told t and predicts x_0 (`binomial.p_step`). Two forms of the bound:
  bound   as in DDPM: the network has the first step too, and pays -log p(x_0 | x_1)
  K       the paper's (eq. 14): the first step is the forward kernel (eq. 44), which costs H(X_1 | X_0), 0.044 bits
A perfect network knows P(x_0 | x_t); what still parts it from the truth is that p draws the bits of x_{t-1} one by one.

Run:       python experiments/heartbeat.py             (writes runs/heartbeat.png; --help lists the settings)
Needs:     2 CPU cores, 1 minute; 2 or 3 beside other jobs
Expect:    K = -2.414 bits per sequence, 12.024 above independent coins (paper, table 1); the truth is -2.322
Measured:  K -2.378 ± 0.004, 12.060 above independent coins; bound -2.334 ± 0.004. A perfect network: K -2.372 ± 0.004,
           bound -2.328 ± 0.004; on the same draws this network loses 0.0065 ± 0.0002. 1000 of 1000 samples are
           heartbeats, 187 to 210 of each. 181 s in all, 65 s of CPU time. Picture: docs/heartbeat.png
           2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, other jobs running.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from flax import linen as nn

from ddpm_jax import keys, schedules
from ddpm_jax.models import bind
from ddpm_jax.models.embeddings import timestep_embedding
from ddpm_jax.process import ModelFn
from ddpm_jax.schedules import Schedule
from ddpm_jax.special import binomial

PERIOD, LENGTH = 5, 20
DATA = np.asarray(np.arange(LENGTH) % PERIOD == np.arange(PERIOD)[:, None], np.float32)  # all of it
RATE = 1 / PERIOD
TRUE_BITS = math.log2(1 / PERIOD)
NULL_BITS = LENGTH * (RATE * math.log2(RATE) + (1 - RATE) * math.log2(1 - RATE))  # independent coins


@dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    num_timesteps: int = 2000
    hidden: int = 128
    num_steps: int = 10_000
    batch_size: int = 500
    learning_rate: float = 2e-3
    num_draws: int = 200  # of x_t, for every t and each of the five sequences
    num_samples: int = 1000
    seed: int = 0
    out: Path = Path("runs/heartbeat.png")


smoke = Settings(num_timesteps=20, hidden=16, num_steps=300, batch_size=50, num_draws=50, num_samples=50)


class MLP(nn.Module):
    """Log-odds of x_0: three hidden layers that see all of x_t, and t."""

    hidden: int
    num_timesteps: int

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        h = jnp.concatenate([2 * x_t - 1, timestep_embedding(t * (1000 / self.num_timesteps), 32)], axis=-1)
        for _ in range(3):
            h = nn.silu(nn.Dense(self.hidden)(h))
        return nn.Dense(LENGTH)(h)


def perfect(schedule: Schedule) -> ModelFn:
    """The true log-odds of every bit of x_0 given all of x_t, by Bayes' rule over the five sequences."""
    x_0 = jnp.asarray(DATA)

    def one(x_t: jax.Array, t: jax.Array) -> jax.Array:
        odds = binomial.q_marginal(schedule, x_0, jnp.full(PERIOD, t), rate=RATE)
        seen = jnp.where(x_t == 1, jnp.inf, -jnp.inf)  # as a coin
        log_q = -binomial.kl_nats(jnp.broadcast_to(seen, x_0.shape), odds).sum(1, keepdims=True)  # log q(x_t | x_0)
        among = lambda bit: jax.nn.logsumexp(jnp.where(x_0 == bit, log_q, -jnp.inf), axis=0)
        return among(1) - among(0)

    return lambda x_t, t: jax.vmap(one)(x_t, t.astype(jnp.int32))


def fit(settings: Settings, schedule: Schedule) -> ModelFn:
    """The network that minimizes T E_t [vlb], t stratified over the batch; one scan."""
    model = MLP(settings.hidden, settings.num_timesteps)
    x_0 = jnp.asarray(np.resize(DATA, (settings.batch_size, LENGTH)))
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps))
    key_init, key_steps = jax.random.split(keys.make(settings.seed))

    def loss(params: Any, key: jax.Array) -> jax.Array:
        key_order, key_t, key_u = jax.random.split(key, 3)
        place = jax.random.permutation(key_order, settings.batch_size).astype(jnp.float32)
        place = (place + jax.random.uniform(key_t, place.shape)) / settings.batch_size
        t = jnp.minimum((place * schedule.num_timesteps).astype(jnp.int32), schedule.num_timesteps - 1)
        u = jax.random.uniform(key_u, x_0.shape)
        return schedule.num_timesteps * binomial.vlb(bind(model, params), schedule, x_0, t, u, rate=RATE).mean()

    def step(state: tuple[Any, Any], k: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, jax.random.fold_in(key_steps, k)), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = model.init(key_init, x_0, jnp.zeros(len(x_0)))["params"]
    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(settings.num_steps))[0])
    return bind(model, run((params, optimizer.init(params)))[0])


def draw_terms(model_fn: ModelFn, schedule: Schedule, key: jax.Array, num_draws: int) -> np.ndarray:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), bits, [T, 5, num_draws]: draws of x_t for every t and sequence."""
    x_0 = jnp.repeat(jnp.asarray(DATA), num_draws, axis=0)

    def at(t: jax.Array) -> jax.Array:
        u = jax.random.uniform(jax.random.fold_in(key, t), x_0.shape)
        terms = binomial.vlb(model_fn, schedule, x_0, jnp.full(len(x_0), t), u, rate=RATE)
        return terms.reshape(PERIOD, num_draws)

    return np.asarray(jax.jit(lambda: jax.lax.map(at, jnp.arange(schedule.num_timesteps)))())


def total(terms: np.ndarray) -> tuple[float, float]:
    """Sum over t of the means, and its standard error; every sequence weighs the same, no draw is used twice."""
    terms = terms.astype(np.float64)
    variances = terms.var(axis=2, ddof=1).mean(axis=1) / terms[0].size
    return float(terms.mean(axis=(1, 2)).sum()), math.sqrt(variances.sum())


def first_step_bits(schedule: Schedule) -> float:
    """-E log2 p(x_0 | x_1) if that step is the forward kernel, as in the paper (eq. 44): H(X_1 | X_0)."""
    odds = binomial.q_marginal(schedule, jnp.asarray(DATA), jnp.zeros(PERIOD, jnp.int32), rate=RATE)
    entropies = 1 - binomial.kl_nats(odds, jnp.zeros_like(odds)) / math.log(2)
    return float(entropies.sum(1).mean())


def bounds(terms: dict[str, np.ndarray], schedule: Schedule) -> dict[str, tuple[float, float]]:
    """(bits per sequence, standard error) of the bound with a learned first step and of the paper's K, by network."""
    prior = float(binomial.prior_bits(schedule, jnp.asarray(DATA), rate=RATE).mean())
    first = first_step_bits(schedule)
    result = {}
    for name, draws in terms.items():
        for form, kept, rest in (("bound", draws, prior), ("K", draws[1:], prior + first)):
            bits, error = total(kept)
            result[f"{form}, {name}"] = -bits - rest, error
    return result


def forward(schedule: Schedule, key: jax.Array, x_0: np.ndarray, times: list[int]) -> list[np.ndarray]:
    """Samples of q(x_t | x_0); time counts steps taken, 0 is the data."""
    result = []
    for time in times:
        u = jax.random.uniform(jax.random.fold_in(key, time), x_0.shape)
        t = jnp.full(len(x_0), time - 1)
        result.append(x_0 if time == 0 else np.asarray(binomial.q_sample(schedule, jnp.asarray(x_0), t, u, rate=RATE)))
    return result


def picture(samples: np.ndarray, terms: dict[str, np.ndarray], schedule: Schedule, path: Path) -> None:
    """Figure 2 of the paper with its forward process, and where along it the bits are paid."""
    num_timesteps, rows = schedule.num_timesteps, 25
    times = [0, num_timesteps // 4, num_timesteps // 2, num_timesteps]
    by_phase = np.argsort(samples[-1, :rows, :PERIOD].argmax(axis=1), kind="stable")
    noised = forward(schedule, keys.make(0), np.repeat(DATA, rows // PERIOD, axis=0), times)
    denoised = [samples[num_timesteps - time, by_phase] for time in times]
    figure = plt.figure(figsize=(13, 5.6), layout="constrained")
    left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(2.1, 1)))
    grid = left.subplots(2, len(times))
    for row, (name, images) in enumerate((("forward  q", noised), ("reverse  p", denoised))):
        for axes, time, bits in zip(grid[row], times, images, strict=True):
            axes.imshow(bits, cmap="Blues", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"t = {time}")
        grid[row][0].set_ylabel(f"{name}\none sequence a row")
    axes = right.subplots()
    fraction = np.arange(1, num_timesteps + 1) / num_timesteps
    for name, style in (("perfect network", "-"), ("this network", "--")):
        paid = np.cumsum(terms[name].mean(axis=(1, 2))[::-1])[::-1]
        axes.plot(fraction, paid, style, label=name, linewidth=2)
    axes.axhline(-TRUE_BITS, color="black", linewidth=0.8, linestyle=":", label="entropy of the data, log2 5")
    axes.set(xlabel="t / T", ylabel="bits paid from x_T down to x_t", xlim=(1, 0), ylim=(0, None))
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(settings: Settings) -> dict[str, tuple[float, float]]:
    """Train, measure, draw; returns the bounds it prints."""
    schedule = schedules.jsd(settings.num_timesteps)
    model_fn = fit(settings, schedule)
    key_draws, key_samples = jax.random.split(keys.make(settings.seed + 1))
    networks = {"this network": model_fn, "perfect network": perfect(schedule)}
    terms = {name: draw_terms(f, schedule, key_draws, settings.num_draws) for name, f in networks.items()}
    shape = settings.num_samples, LENGTH
    run = jax.jit(lambda key: binomial.trajectory(model_fn, schedule, key, shape, rate=RATE))
    samples = np.asarray(run(key_samples))
    picture(samples, terms, schedule, settings.out)

    found = bounds(terms, schedule)
    print("log2 p(x_0), bits per sequence, mean over the five sequences")
    print(f"  {'truth, log2(1/5)':32}{TRUE_BITS:8.3f}")
    for name, (bits, error) in found.items():
        print(f"  {name:32}{bits:8.3f} ± {error:.3f}   {bits - NULL_BITS:.3f} above independent coins")
    print(
        "  {:32}{:8.4f} ± {:.4f}".format(
            "lost by this network", *total(terms["this network"] - terms["perfect network"])
        )
    )
    equal = (samples[-1][:, None] == DATA[None]).all(axis=2)
    print(f"{len(equal)} samples: {equal.any(axis=1).mean():.1%} are heartbeats; of each: {equal.sum(axis=0).tolist()}")
    print(settings.out)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
