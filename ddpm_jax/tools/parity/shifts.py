"""Guidance by a classifier's gradient as recorded loops have it, with every convention as one field."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import guidance
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.denoise import Denoise, Denoised, mean_coefficients
from ddpm_jax.samplers.table import Row
from ddpm_jax.tools.parity.loops import Clip
from ddpm_jax.tools.parity.search import having

Guide = Callable[[Denoise, Clip], Denoise]


@dataclasses.dataclass(frozen=True)
class Shifted:
    """guidance.mean_shifted or score_shifted.

    Attributes:
      form: the mean moves by variance * gradient, or eps by -sigma * gradient.
      at: where the gradient is taken: x_t, or the mean of p(x_{t-1} | x_t).
      clipping: of x_0: before the shift, or after it.
      batch: the gradient is that of a sum over the batch, or of a mean.
    """

    form: Literal["mean", "score"]
    at: Literal["x_t", "mean"] = "x_t"
    clipping: Literal["before", "after"] = "before"
    batch: Literal["sum", "mean"] = "sum"

    def guide(self, arrays: Mapping[str, np.ndarray]) -> Guide:
        """What loops.openai takes, with the recorded log p(y | x_t)."""
        gradient = gradient_of(arrays)
        scale = 1 / len(arrays["y"]) if self.batch == "mean" else 1.0
        shift = {"mean": guidance.mean_shifted, "score": guidance.score_shifted}[self.form]

        def shifted(denoise: Denoise) -> Denoise:
            def wrapped(x: jax.Array, row: Row) -> Denoised:
                found, place = denoise(x, row), x
                if self.at == "mean":
                    coef1, coef2 = mean_coefficients(row)
                    place = coef1 * found.x_0 + coef2 * x
                return shift(lambda x, row: found, lambda x, t: gradient(place, t), scale=scale)(x, row)

            return wrapped

        if self.clipping == "after":
            return lambda denoise, clip: clip(shifted(denoise))
        return lambda denoise, clip: shifted(clip(denoise))


CONVENTIONS: dict[str, Callable[[Shifted], Shifted | None]] = {
    "G4 mean + variance * gradient (algorithm 1)": having(form="mean"),
    "G4 eps - sigma * gradient (algorithm 2)": having(form="score"),
    "G4 gradient at x_t": having(at="x_t"),
    "G4 gradient at the mean": having(at="mean"),
    "G4 gradient of the batch's mean": having(batch="mean"),
    "G4 gradient of the batch's sum": having(batch="sum"),
    "G3 guided before clipping": having(clipping="after"),
    "G3 guided after clipping": having(clipping="before"),
}
# (recording, ours, what ours is)
LOOPS: tuple[tuple[str, Shifted, str], ...] = (
    ("loop_p_guided_p", Shifted("mean"), "mean_shifted"),
    ("loop_p_guided_p", Shifted("mean", at="mean"), "algorithm 1 as printed, with the gradient at the mean"),
    ("loop_q_guided_p_fixed", Shifted("mean"), "mean_shifted"),
    ("loop_r_guided_ddim_eta0", Shifted("score"), "score_shifted"),
    ("loop_s_guided_ddim_eta05", Shifted("score"), "score_shifted"),
)


def gradient_of(arrays: Mapping[str, np.ndarray]) -> ModelFn:
    """kappa_y (center_y - x) (1 / 2 + t / 1000): the recordings' gradient of log p(y | x_t)."""
    y = arrays["y"]
    column = lambda vector: vector.reshape(-1, 1, 1, 1)
    kappa, center = column(arrays["cond_kappa"][y].astype(np.float64)), arrays["cond_center"][y].astype(np.float64)
    return lambda x, t: kappa * (center - x) * column(0.5 + t.astype(jnp.float64) / 1000)
