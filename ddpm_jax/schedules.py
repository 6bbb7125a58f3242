"""Noise schedules: everything that depends on t alone, computed once in float64 and stored as float32 tables.

Symbols (Ho et al. 2020, arXiv:2006.11239):
  T                       num_timesteps
  t                       int, 0-based: t = 0 has been diffused once (the paper counts it as t = 1); t = T-1 is noisiest
  beta_t in (0, 1)        q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                        eq. 2
  alpha_t = 1 - beta_t
  alphas_cumprod_t        product of alpha_0 .. alpha_t:  q(x_t | x_0) = N(sqrt(ac_t) x_0, (1 - ac_t) I)  eq. 4
  beta_tilde_t            variance of q(x_{t-1} | x_t, x_0)                                               eq. 7

Only the last beta may be exactly 1 (zero terminal signal-to-noise ratio); 1 / sqrt(alphas_cumprod) is inf there and
log_snr is -inf. Cumulative products of float32 betas are wrong by 1.7e-4 in 1 - alphas_cumprod_0, hence the float64.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ddpm_jax.names import apply, choose

MOST_TIMESTEPS = 2**24  # networks are told t as float32, which holds no more whole numbers without gaps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of one noise schedule; float32 [T], except `timesteps`.

    A pytree: pass it through jit, or close over it. Two jit calls share a compilation if they use the same schedule.
    """

    betas: jax.Array
    alphas: jax.Array
    alphas_cumprod: jax.Array
    alphas_cumprod_prev: jax.Array  # alphas_cumprod shifted by one, padded with 1
    sqrt_alphas_cumprod: jax.Array
    sqrt_one_minus_alphas_cumprod: jax.Array
    one_minus_alphas_cumprod: jax.Array
    sqrt_recip_alphas: jax.Array
    sqrt_recip_alphas_cumprod: jax.Array
    sqrt_recipm1_alphas_cumprod: jax.Array  # sqrt(1 / alphas_cumprod - 1)
    posterior_variance: jax.Array  # beta_tilde; exactly 0 at t = 0
    posterior_log_variance_clipped: jax.Array  # natural log; its value at t = 0 is that of t = 1
    posterior_mean_coef1: jax.Array  # of x_0
    posterior_mean_coef2: jax.Array  # of x_t
    log_snr: jax.Array  # log(alphas_cumprod / (1 - alphas_cumprod)), natural log
    timesteps: jax.Array  # int32 [T]: the index each entry has in the schedule it was respaced from
    # Part of the pytree's structure rather than a leaf: leaves are float32, and this is what samplers are built from.
    exact_betas: bytes = dataclasses.field(metadata={"static": True}, repr=False)

    @property
    def num_timesteps(self) -> int:
        return self.betas.shape[0]

    @property
    def betas_float64(self) -> np.ndarray:
        """The betas as given, float64 [T], NumPy; known even while tracing."""
        return np.frombuffer(self.exact_betas, np.float64)

    @property
    def alphas_cumprod_float64(self) -> np.ndarray:
        """prod(1 - betas) and its complement are what samplers are built from; float64 [T], NumPy."""
        return np.cumprod(1 - self.betas_float64)

    @property
    def one_minus_alphas_cumprod_float64(self) -> np.ndarray:
        """1 - prod(1 - betas) without cancellation; float64 [T], NumPy."""
        return _one_minus_cumprod(self.betas_float64)


def _one_minus_cumprod(betas: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # log1p(-1) = -inf is right: 1 - exp(-inf) = 1
        return -np.expm1(np.cumsum(np.log1p(-betas)))


def _checked_betas(betas: ArrayLike) -> np.ndarray:
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"betas must be a list of numbers: {error}") from None
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a non-empty 1-d array, got shape {betas.shape}")
    allowed = (betas > 0) & (betas < 1)
    allowed[-1] |= betas[-1] == 1
    if not allowed.all():
        bad = int(np.argmin(allowed))
        raise ValueError(
            f"betas must lie in (0, 1), only the last may be 1, got betas[{bad}] = {betas[bad]} (T = {betas.size})"
        )
    return betas


def from_betas(betas: ArrayLike, *, timesteps: ArrayLike | None = None) -> Schedule:
    """All tables of q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 2, 4, 7.

    Args:
      betas: [T] in (0, 1); only the last may be 1.
      timesteps: [T] int, what the network is told for each entry; arange(T) by default.

    Raises:
      ValueError: a beta outside (0, 1), or timesteps of another length.
    """
    betas = _checked_betas(betas)
    num_timesteps = betas.size
    timesteps = np.arange(num_timesteps) if timesteps is None else np.asarray(timesteps)
    if timesteps.shape != betas.shape or timesteps.dtype.kind not in "iu":
        raise ValueError(f"timesteps must be {num_timesteps} integers, got {timesteps.dtype} {timesteps.shape}")

    alphas = 1 - betas
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    one_minus = _one_minus_cumprod(betas)
    one_minus_prev = np.append(0.0, one_minus[:-1])
    posterior_variance = betas * one_minus_prev / one_minus
    # beta_tilde_0 is 0; its log serves only as the scale of the decoder, where the paper's code takes beta_tilde_1.
    # A schedule of one step has no t = 1 and takes its beta.
    first = posterior_variance[1:2] if num_timesteps > 1 else betas
    with np.errstate(divide="ignore"):
        tables = {
            "betas": betas,
            "alphas": alphas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(one_minus),
            "one_minus_alphas_cumprod": one_minus,
            "sqrt_recip_alphas": 1 / np.sqrt(alphas),
            "sqrt_recip_alphas_cumprod": 1 / np.sqrt(alphas_cumprod),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(one_minus / alphas_cumprod),
            "posterior_variance": posterior_variance,
            "posterior_log_variance_clipped": np.log(np.append(first, posterior_variance[1:])),
            "posterior_mean_coef1": betas * np.sqrt(alphas_cumprod_prev) / one_minus,
            "posterior_mean_coef2": one_minus_prev * np.sqrt(alphas) / one_minus,
            "log_snr": np.log(alphas_cumprod) - np.log(one_minus),
        }
    return Schedule(
        **{name: jnp.asarray(table, jnp.float32) for name, table in tables.items()},
        timesteps=jnp.asarray(timesteps, jnp.int32),
        exact_betas=betas.tobytes(),
    )


def _checked_length(num_timesteps: int) -> int:
    if not isinstance(num_timesteps, int | np.integer) or isinstance(num_timesteps, bool) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be a whole number of at least 1, got {num_timesteps!r}")
    if num_timesteps > MOST_TIMESTEPS:
        raise ValueError(f"num_timesteps must be at most {MOST_TIMESTEPS}, got {num_timesteps}")
    return int(num_timesteps)


def linear(num_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta_t = linspace(beta_start, beta_end, T), whatever T.

    Source: Ho et al. 2020 (arXiv:2006.11239), section 4. LDM calls this "sqrt_linear".
    """
    return from_betas(np.linspace(beta_start, beta_end, _checked_length(num_timesteps)))


def linear_rescaled(num_timesteps: int = 1000) -> Schedule:
    """beta_t = linspace(1e-4, 0.02, T) * 1000 / T: the same alphas_cumprod_T for every T; T = 20 ends in beta = 1.

    Source: the code of Nichol & Dhariwal 2021 (arXiv:2102.09672), which calls it "linear".
    """
    scale = 1000 / _checked_length(num_timesteps)
    return linear(num_timesteps, beta_start=scale * 1e-4, beta_end=scale * 0.02)


def quad(num_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta_t = linspace(sqrt(beta_start), sqrt(beta_end), T)^2.

    Source: the code of Ho et al. 2020 ("quad"); "linear" in LDM, "scaled_linear" in diffusers.
    """
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, _checked_length(num_timesteps)) ** 2)


def sqrt(num_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta_t = sqrt(linspace(beta_start, beta_end, T)).

    Source: LDM's "sqrt" (Rombach et al. 2022, arXiv:2112.10752, code). Not the sqrt of Diffusion-LM.
    """
    return from_betas(np.sqrt(np.linspace(beta_start, beta_end, _checked_length(num_timesteps))))


def cosine(num_timesteps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """beta_t = min(1 - f((t+1)/T) / f(t/T), max_beta),  f(u) = cos^2((u + s) / (1 + s) * pi / 2).

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17 and the clip below it. max_beta keeps the last step from
    being singular; it binds for exactly one t at T = 1000.
    """
    u = np.arange(_checked_length(num_timesteps) + 1) / num_timesteps
    f = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta))


def sigmoid(num_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta_t = sigma(linspace(-6, 6, T)) * (beta_end - beta_start) + beta_start.

    Source: GeoDiff (Xu et al. 2022, arXiv:2203.02923, code); "sigmoid" in diffusers and in DDIM's code. A sigmoid in
    beta; for the schedule of the same name whose alphas_cumprod is a sigmoid, see `sigmoid_cumprod`.
    """
    u = np.linspace(-6, 6, _checked_length(num_timesteps))
    return from_betas((beta_end - beta_start) / (1 + np.exp(-u)) + beta_start)


def sigmoid_cumprod(
    num_timesteps: int = 1000,
    *,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
) -> Schedule:
    """alphas_cumprod(u) = (f(1) - f(u)) / (f(1) - f(0)),  f(u) = sigma((start + u (end - start)) / tau).

    beta_t = min(1 - alphas_cumprod((t+1)/T) / alphas_cumprod(t/T), max_beta).

    Source: Jabri et al. 2022 (arXiv:2212.11972), algorithm 1 ("sigmoid schedule"); "sigmoid" in lucidrains' code.
    """
    u = np.arange(_checked_length(num_timesteps) + 1) / num_timesteps
    f = 1 / (1 + np.exp(-(start + u * (end - start)) / tau))
    alphas_cumprod = (f[-1] - f) / (f[-1] - f[0])
    return from_betas(np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta))


def laplace(num_timesteps: int = 1000, *, max_beta: float = 0.999) -> Schedule:
    """alphas_cumprod(u) = sqrt(snr / (1 + snr)),  log snr = -sign(1/2 - u) log(1 - 2 |1/2 - u| + 1e-6) / 2.

    beta_t = min(1 - alphas_cumprod((t+1)/T) / alphas_cumprod(t/T), max_beta).

    Source: diffusers' "laplace"; Hang & Gu 2024 (arXiv:2407.03297), whose logarithm it halves and whose root it keeps.
    """
    u = np.arange(_checked_length(num_timesteps) + 1) / num_timesteps
    log_snr = -0.5 * np.copysign(1, 0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
    alphas_cumprod = (1 + np.exp(-log_snr)) ** -0.5
    return from_betas(np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta))


def const(num_timesteps: int = 1000, *, beta_end: float = 0.02) -> Schedule:
    """beta_t = beta_end.

    Source: the code of Ho et al. 2020 ("const").
    """
    return from_betas(np.full(_checked_length(num_timesteps), beta_end))


def jsd(num_timesteps: int = 1000) -> Schedule:
    """beta_t = 1 / (T - t): 1/T, 1/(T-1), .., 1. alphas_cumprod falls linearly to exactly 0.

    Source: Sohl-Dickstein et al. 2015 (arXiv:1503.03585), section 2.4.1; "jsd" in the code of Ho et al. 2020.
    """
    return from_betas(1 / np.arange(_checked_length(num_timesteps), 0, -1.0))


def warmup(
    num_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02, fraction: float = 0.1
) -> Schedule:
    """beta_t = linspace(beta_start, beta_end, int(fraction T)), then beta_end.

    Source: the code of Ho et al. 2020: "warmup10" is fraction 0.1, "warmup50" is 0.5.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    betas = np.full(_checked_length(num_timesteps), beta_end)
    ramp = int(num_timesteps * fraction)
    betas[:ramp] = np.linspace(beta_start, beta_end, ramp)
    return from_betas(betas)


def respace(schedule: Schedule, timesteps: Sequence[int] | np.ndarray) -> Schedule:
    """beta'_k = 1 - ac[timesteps[k]] / ac[timesteps[k-1]]: the same process seen at fewer times.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 19.

    Args:
      schedule: schedule of length T; may itself be respaced.
      timesteps: [N] strictly increasing integers in [0, T).

    Returns:
      Schedule of length N whose `timesteps` are those of the original entries.

    Raises:
      ValueError: timesteps empty, not integers, not strictly increasing, or outside [0, T).
    """
    steps = checked_timesteps(schedule, timesteps)
    if (np.diff(steps) <= 0).any():
        bad = int(np.argmax(np.diff(steps) <= 0))
        raise ValueError(f"timesteps must increase strictly, got {steps[bad]} followed by {steps[bad + 1]}")
    # Sums of log(1 - beta) between two kept steps: no cancellation, and keeping every step gives the betas back.
    with np.errstate(divide="ignore"):
        log_alphas = np.log1p(-schedule.betas_float64[: steps[-1] + 1])
    log_alphas = np.add.reduceat(log_alphas, np.append(0, steps[:-1] + 1))
    return from_betas(-np.expm1(log_alphas), timesteps=np.asarray(schedule.timesteps)[steps])


def checked_timesteps(schedule: Schedule, timesteps: Sequence[int] | np.ndarray) -> np.ndarray:
    """timesteps as an array [N] of integers in [0, T).

    Raises:
      ValueError: they are not, or there are none.
    """
    try:
        steps = np.asarray(timesteps)
    except ValueError:  # lists of several lengths
        steps = np.empty(0)
    if steps.ndim != 1 or steps.size == 0 or steps.dtype.kind not in "iu":
        raise ValueError(f"timesteps must be a non-empty list of integers, got {timesteps!r}")
    if steps.min() < 0 or steps.max() >= schedule.num_timesteps:
        bad = steps.min() if steps.min() < 0 else steps.max()
        raise ValueError(f"timesteps must lie in [0, {schedule.num_timesteps}), got {bad}")
    return steps


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """sqrt(ac'_t) = (sqrt(ac_t) - sqrt(ac_{T-1})) * sqrt(ac_0) / (sqrt(ac_0) - sqrt(ac_{T-1})): ends in exactly 0.

    Source: Lin et al. 2023 (arXiv:2305.08891), algorithm 1. A network that predicts eps knows nothing at the last
    step of such a schedule: predict v or x_0.

    Raises:
      ValueError: a schedule of one step.
    """
    if schedule.num_timesteps < 2:
        raise ValueError(f"zero_terminal_snr needs at least 2 timesteps, got {schedule.num_timesteps}")
    root = np.sqrt(schedule.alphas_cumprod_float64)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    betas = 1 - (root / np.append(1.0, root[:-1])) ** 2
    return from_betas(betas, timesteps=np.asarray(schedule.timesteps))


def make_beta_schedule(
    schedule: str, n_timestep: int, linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3
) -> np.ndarray:
    """LDM's function of this name: betas, float64 [T].

    "linear" is `quad` here, "sqrt_linear" is `linear`; "cosine" and "sqrt" mean the same.

    Source: Rombach et al. 2022 (arXiv:2112.10752), code.
    """
    ends = {"beta_start": linear_start, "beta_end": linear_end}
    made: dict[str, Callable[[], Schedule]] = {
        "linear": lambda: quad(n_timestep, **ends),
        "cosine": lambda: cosine(n_timestep, s=cosine_s),
        "sqrt_linear": lambda: linear(n_timestep, **ends),
        "sqrt": lambda: sqrt(n_timestep, **ends),
    }
    return choose("schedule", schedule, made)().betas_float64


BY_NAME: dict[str, Callable[..., Schedule]] = {
    function.__name__: function
    for function in (linear, linear_rescaled, quad, sqrt, cosine, sigmoid, sigmoid_cumprod, laplace, const, jsd, warmup)
}


def make(name: str, num_timesteps: int = 1000, **arguments: float) -> Schedule:
    """The schedule function called `name` in this module, applied: for configurations.

    Raises:
      ValueError: no such schedule, an argument it does not take, or a number out of range.
    """
    return apply("schedule", name, BY_NAME, num_timesteps, **arguments)
