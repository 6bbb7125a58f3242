"""The order of convergence of every deterministic solver, on a Gaussian mixture whose score is known exactly.

Run:       python experiments/solver_orders.py > docs/solver_orders.md
Needs:     a CPU, about 3 minutes
Expect:    the orders of theory; DPM-Solver++(3M) as published 2, corrected 3
Measured:  docs/solver_orders.md

float64; variance-preserving SDE with beta(t) from 0.1 to 20; levels uniform in log-SNR from t = 1 to t = 1e-3; 64
starting points in 8 dimensions; the error is rms against the flow integrated by DOP853 (rtol 3e-14).
"""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from scipy.integrate import solve_ivp

from ddpm_jax import samplers
from ddpm_jax.samplers import Grid, Level, Table
from ddpm_jax.samplers.denoise import Denoised

CALLS = (32, 64, 128, 256, 512)
Solver = Callable[[int], Table]

# ---------------------------------------------------------------------------------------------- the exact mixture

RANDOM = np.random.RandomState(0)
MEANS, STDS, WEIGHTS = 0.7 * RANDOM.randn(5, 8), 0.6 + 0.4 * RANDOM.rand(5), np.full(5, 0.2)
X_T = RANDOM.randn(64, 8)


def exact_eps(x: jax.Array, alpha: jax.Array | float, sigma: jax.Array | float) -> jax.Array:
    """E[eps | x] for x = alpha x_0 + sigma eps, [B, 8]."""
    variance = alpha**2 * jnp.asarray(STDS) ** 2 + sigma**2
    residual = x[:, None] - alpha * jnp.asarray(MEANS)
    log_r = jnp.log(jnp.asarray(WEIGHTS)) - 4 * jnp.log(variance) - (residual**2).sum(-1) / (2 * variance)
    return sigma * (jax.nn.softmax(log_r)[:, :, None] * residual / variance[:, None]).sum(1)


def denoise(x: jax.Array, row: samplers.Row) -> Denoised:
    eps = exact_eps(x, row.alpha, row.sigma)
    return Denoised((x - row.sigma * eps) / row.alpha, eps)


# ------------------------------------------------------------------------------------------------------- the grid


def level(lam: float) -> Level:
    """alpha / sigma = e^lambda, alpha^2 + sigma^2 = 1."""
    return Level(lam, 1 / math.hypot(1, math.exp(-lam)), 1 / math.hypot(1, math.exp(lam)))


def log_snr_at(t: float) -> float:
    """lambda of the SDE with beta(t) = 0.1 + 19.9 t."""
    log_alpha = -(t**2) * 19.9 / 4 - t * 0.1 / 2
    return log_alpha - 0.5 * math.log(-math.expm1(2 * log_alpha))


START, END = log_snr_at(1.0), log_snr_at(1e-3)


def grid(num_steps: int) -> Grid:
    return Grid(tuple(map(level, np.linspace(START, END, num_steps + 1))))


def level_at(sigma: float) -> Level:
    """The level with this sigma / alpha, for solvers that choose levels between those of the grid."""
    return level(-math.log(sigma))


def reference() -> np.ndarray:
    """The end of the flow: d(x / alpha) / d lambda = -e^{-lambda} eps."""

    @jax.jit
    def derivative(lam: jax.Array, y: jax.Array) -> jax.Array:
        alpha, sigma = jax.lax.rsqrt(1 + jnp.exp(-2 * lam)), jax.lax.rsqrt(1 + jnp.exp(2 * lam))
        return (-jnp.exp(-lam) * exact_eps(alpha * y.reshape(X_T.shape), alpha, sigma)).ravel()

    s, t = level(START), level(END)
    result = solve_ivp(derivative, (START, END), (X_T / s.alpha).ravel(), method="DOP853", rtol=3e-14, atol=1e-14)
    return t.alpha * result.y[:, -1].reshape(X_T.shape)


# ---------------------------------------------------------------------------------------------------- the solvers


def halfway(g: Grid) -> list[Level]:
    return [level((s.time + t.time) / 2) for s, t in g.steps()]


SOLVERS: dict[str, tuple[int, Solver]] = {
    "DDIM = Euler = DPM-Solver-1": (1, lambda n: samplers.ddim(grid(n))),
    "Heun": (2, lambda n: samplers.heun(grid(n // 2))),
    "DPM-2": (2, lambda n: samplers.kdpm2(grid(n // 2), level_at)),
    "LMS-2": (2, lambda n: samplers.lms(grid(n), order=2)),
    "LMS-4": (4, lambda n: samplers.lms(grid(n), order=4)),
    "iPNDM-2": (2, lambda n: samplers.ipndm(grid(n), order=2)),
    "PLMS": (2, lambda n: samplers.plms(grid(n))),
    "PNDM": (2, lambda n: samplers.pndm(grid(n - 9), middle=halfway(grid(n - 9))[:3])),
    "DEIS-2": (2, lambda n: samplers.deis(grid(n), order=2)),
    "DEIS-3": (3, lambda n: samplers.deis(grid(n), order=3)),
    "DPM-Solver-2, multistep": (2, lambda n: samplers.dpm_solver(grid(n), order=2, predict="eps")),
    "DPM-Solver-2, singlestep": (2, lambda n: samplers.dpm_solver_singlestep(grid(n), order=2, predict="eps")),
    "DPM-Solver-3, singlestep": (
        3,
        lambda n: samplers.dpm_solver_singlestep(
            grid(n - n % 3), order=3, predict="eps", method="midpoint", inner="heun", lower_order_final=False
        ),
    ),
    "DPM-Solver++(2M)": (2, lambda n: samplers.dpm_solver(grid(n), order=2)),
    "DPM-Solver++(2M), heun": (2, lambda n: samplers.dpm_solver(grid(n), order=2, method="heun")),
    "DPM-Solver++(3M), as published": (2, lambda n: samplers.dpm_solver(grid(n), order=3)),
    "DPM-Solver++(3M), corrected": (3, lambda n: samplers.dpm_solver(grid(n), order=3, third_order="corrected")),
    "DPM-Solver++(2S)": (2, lambda n: samplers.dpm_solver_singlestep(grid(n), order=2)),
    "UniPC-2, bh2": (3, lambda n: samplers.unipc(grid(n), order=2)),
    "UniPC-2, bh1": (3, lambda n: samplers.unipc(grid(n), order=2, variant="bh1")),
    "UniPC-3, bh2": (4, lambda n: samplers.unipc(grid(n), order=3, lower_order_final=False)),
    "UniP-2 (no corrector)": (2, lambda n: samplers.unipc(grid(n), order=2, corrector=False)),
}


def errors(solver: Solver, expected: np.ndarray) -> Iterator[tuple[int, float]]:
    """(calls, rms error) of a solver."""
    for n in CALLS:
        table = solver(n)
        run = jax.jit(
            lambda table, noise: samplers.sample(denoise, table, None, X_T.shape, x_T=jnp.asarray(X_T), noise=noise)
        )
        found = run(table, jnp.zeros((table.num_calls, *X_T.shape)))
        yield table.num_calls, float(np.sqrt(np.mean((np.asarray(found) - expected) ** 2)))


def measured_order(points: list[tuple[int, float]]) -> float:
    """Minus the slope of log error against log calls, between the last two points."""
    (n, coarse), (m, fine) = points[-2:]
    return math.log(coarse / fine) / math.log(m / n)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    expected = reference()
    print("# Orders of convergence\n")
    print("Made by `python experiments/solver_orders.py > docs/solver_orders.md`: see there for the setting. The error")
    print("is rms against the exact flow; the measured order is the slope between the last two columns. A corrector")
    print("adds an order. DPM-Solver++(3M) as published weighs the second divided difference, which is half of the")
    print("second derivative, as if it were the derivative: that costs it an order. The corrected form is")
    print('`samplers.dpm_solver(grid, order=3, third_order="corrected")`. Every grid here ends above sigma = 0: the')
    print("step to the clean image is the image predicted before it, which errs by about its noise level squared.\n")
    print(f"jax {jax.__version__}, scipy {scipy.__version__}, numpy {np.__version__}, float64, CPU.\n")
    print("| solver | theory | measured | " + " | ".join(f"{n} calls" for n in CALLS) + " |")
    print("|-|-|-|" + "-|" * len(CALLS))
    for name, (theory, solver) in SOLVERS.items():
        points = list(errors(solver, expected))
        order = measured_order(points)
        print(f"| {name} | {theory} | {order:.2f} | " + " | ".join(f"{error:.1e}" for _, error in points) + " |")


if __name__ == "__main__":
    main()
