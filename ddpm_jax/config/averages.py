"""Which averages of parameters a run keeps; `train.ema` computes them."""

import dataclasses

import numpy as np

# Of the power function with gamma = 0, the mean of all parameters so far: a wider one would weigh old ones the most.
WIDEST = 12**-0.5
# A ten-thousandth of the training: no average any more.
NARROWEST = 1e-4


@dataclasses.dataclass(frozen=True)
class Averages:
    """Those that are kept in one stacked tree, rows in this order."""

    decays: tuple[float, ...] = ()
    """Constant ones, each in [0, 1)."""
    sigmas: tuple[float, ...] = ()
    """sigma_rel of power functions, each in [NARROWEST, WIDEST]."""

    def __len__(self) -> int:
        return len(self.decays) + len(self.sigmas)


NONE = Averages()


def gamma_of(sigma_rel: float) -> float:
    """gamma >= 0 of the power function for which sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Source: Karras et al. 2024 (arXiv:2312.02696), section 3.1 and appendix C: the standard deviation of tau / t under
    the density (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t].

    Raises:
      ValueError: sigma_rel outside [NARROWEST, WIDEST].
    """
    if not NARROWEST <= sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must lie in [{NARROWEST}, {WIDEST:.6f}], got {sigma_rel}")
    square = float(sigma_rel) ** -2
    # Of the three roots, all real, only the largest is above -0.39. At WIDEST it is 0 but for rounding.
    return max(0.0, float(np.roots([1, 7, 16 - square, 12 - square]).real.max()))
