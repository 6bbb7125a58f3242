"""DPM-Solver++ for the SDE, singlestep, as k-diffusion has it (DPM++ SDE): the noise of a step is one Brownian path."""

from collections.abc import Iterator
from math import sqrt

from ddpm_jax.samplers.families.euler import ancestral_step
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.grids.sigma_grids import LevelAt, ratio
from ddpm_jax.samplers.table import EPS, SAVED, X0, Row, Z, row, sampler


@sampler
def dpm_solver_sde(grid: Grid, level_at: LevelAt, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Row]:
    """x_t / alpha_t = keep x_s / alpha_s + (1 - keep) x_0(x_m) + up (W_s - W_t) / |W_s - W_t|,  keep = down / sigma_s.

    m is half way in log sigma, and x_m an Euler step there with noise of the same path: W is a Brownian motion in
    sigma, |.| the standard deviation, so W_s - W_t holds W_s - W_m. up and down are those of `euler_ancestral`. Two
    calls a step, one on a step to sigma = 0. With eta = 0 this is `dpm_solver_2s_ancestral` with eta = 0.

    Source: k-diffusion (sample_dpmpp_sde, r = 1/2); Lu et al. 2022 (arXiv:2211.01095), algorithm 1, for the flow.

    Args:
      grid: levels of any process.
      level_at: gives the levels half way; `sigma_grids.discrete` or `sigma_grids.continuous`.
      eta: in [0, 1].
      s_noise: inflates the noise.

    Raises:
      ValueError: eta outside [0, 1].
    """
    for s, t in grid.steps():
        up, down = ancestral_step(ratio(s), ratio(t), eta)
        if t.sigma == 0:
            yield row(s, X=t.alpha * X0)
            continue
        m = level_at(sqrt(ratio(s) * ratio(t)))
        up_m, down_m = ancestral_step(ratio(s), ratio(m), eta)
        # The path's increment over the step: these parts of what it is to m, which x_m has had, and of what follows.
        length = ratio(s) - ratio(t)
        before, after = sqrt((ratio(s) - ratio(m)) / length), sqrt((ratio(m) - ratio(t)) / length)
        keep = down / ratio(s)
        begun = keep * (X0 + ratio(s) * EPS) + s_noise * up * before * Z
        yield row(s, X=m.alpha * (X0 + down_m * EPS + s_noise * up_m * Z), SAVED=begun)
        yield row(m, X=t.alpha * (SAVED + (1 - keep) * X0 + s_noise * up * after * Z))
