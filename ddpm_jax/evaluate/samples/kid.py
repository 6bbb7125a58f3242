"""Kernel inception distance: MMD^2 of features with the kernel (x^T y / D + 1)^3. Its expectation is 0 for equal laws.

`distance` takes all pairs; `blocks` and `subsets` the mean over parts of the sets: disjoint ones, whose standard error
is known without more, or ones drawn by chance as the common programs do.

Source: Binkowski et al. 2018 (arXiv:1801.01401), section 3; blocks: Zaremba et al. 2013 (arXiv:1307.1954), eq. 2.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np

from ddpm_jax.evaluate.samples.kernels import Estimator, Kernel, Polynomial, mmd2
from ddpm_jax.evaluate.samples.points import Estimate, Points, check_two
from ddpm_jax.names import unknown

Order = Literal["torch-fidelity", "clean-fid"]


class Subsets(NamedTuple):
    """Mean and spread (population standard deviation) over subsets. They overlap: the spread is no standard error."""

    value: float
    spread: float


def distance(samples: Points, reference: Points, kernel: Kernel = Polynomial()) -> Estimate:  # noqa: B008
    """The unbiased MMD^2 of all pairs.

    Raises:
      ValueError: as of `kernels.mmd2`.
    """
    return mmd2(samples, reference, kernel)


def by_blocks(samples: Points, reference: Points, size: int, kernel: Kernel = Polynomial()) -> Estimate:  # noqa: B008
    """The mean of the unbiased MMD^2 over disjoint blocks of `size` of each set, in order; the rest is not used.

    Raises:
      ValueError: as of `kernels.mmd2`; a size below 2 or above the number of images.
    """
    count = min(len(samples), len(reference)) // _checked(samples, reference, size, "size")
    parts = [slice(i * size, (i + 1) * size) for i in range(count)]
    values = np.array([mmd2(samples[part], reference[part], kernel).value for part in parts])
    error = values.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return Estimate(float(values.mean()), float(error))


def by_subsets(
    samples: Points,
    reference: Points,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
    order: Order = "torch-fidelity",
    kernel: Kernel = Polynomial(),  # noqa: B008
    estimator: Estimator = "unbiased",
) -> Subsets:
    """The mean of MMD^2 over subsets of `size` of each set, drawn without replacement by NumPy's RandomState(seed).

    Args:
      samples: [N, D].
      reference: [M, D].
      subsets: how many.
      size: of each.
      seed: of the draws.
      order: whose subset is drawn first: torch-fidelity the samples', clean-fid the reference's. torch-fidelity calls
        the samples input 1.
      kernel: k.
      estimator: of MMD^2 on a subset.

    Raises:
      ValueError: as of `kernels.mmd2`; no subsets, a size below 2 or above the number of images, no such order.
    """
    _checked(samples, reference, size, "kid subset size")
    if order not in get_args(Order):
        raise unknown("kid order", order, get_args(Order))
    if subsets < 1:
        raise ValueError(f"kid subsets must be at least 1, got {subsets}")
    draws, values = np.random.RandomState(seed), []  # whose draws the originals make
    for _ in range(subsets):
        if order == "torch-fidelity":
            chosen = draws.choice(len(samples), size, replace=False)
            against = draws.choice(len(reference), size, replace=False)
        else:
            against = draws.choice(len(reference), size, replace=False)
            chosen = draws.choice(len(samples), size, replace=False)
        values.append(mmd2(samples[chosen], reference[against], kernel, estimator).value)
    return Subsets(float(np.mean(values)), float(np.std(values)))


def _checked(samples: Points, reference: Points, size: int, what: str) -> int:
    check_two(samples, reference)
    if not 2 <= size <= min(len(samples), len(reference)):
        raise ValueError(
            f"{what} must be from 2 to {min(len(samples), len(reference))}, the images there are, got {size}"
        )
    return size
