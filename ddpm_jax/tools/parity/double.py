"""diffusers' schedulers with other arithmetic: float64 from their own float32 tables, or a processor's square roots.

What is left then is no rounding of theirs.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.samplers.configs.square_root import square_root

# From here on sigma / alpha is used as float32 has it, on both sides: x_0 is a small difference divided by alpha.
LARGE = 1000.0


class _Wide:
    """A module whose float32 is float64."""

    def __init__(self, module: Any):
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def widened(torch: Any, scheduler_class: type) -> Iterator[None]:
    """Within, the module of this class has float64 wherever it says float32, and torch's own default is float64."""
    module = sys.modules[scheduler_class.__module__]
    before = {name: vars(module)[name] for name in ("torch", "np") if name in vars(module)}
    default = torch.get_default_dtype()
    for name, value in before.items():
        setattr(module, name, _Wide(value))
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        for name, value in before.items():
            setattr(module, name, value)


def refine(torch: Any, wide: Any, narrow: Any) -> None:
    """A scheduler made within `widened` with the tables of `narrow`, and what follows from them in float64.

    The table of the classes that step along sigma is their sigmas; that of all others alphas_cumprod.
    """
    if not hasattr(narrow, "alphas_cumprod"):
        return
    keep = narrow.alphas_cumprod.double()
    if hasattr(narrow, "sigmas") and not hasattr(narrow, "alpha_t"):
        keep = 1 / (1 + (((1 - narrow.alphas_cumprod) / narrow.alphas_cumprod) ** 0.5).double() ** 2)
    alphas = keep / torch.cat([torch.ones(1), keep[:-1]])
    alpha, sigma = torch.sqrt(keep), torch.sqrt(1 - keep)
    derived = {
        "alphas_cumprod": keep,
        "alphas": alphas,
        "betas": 1 - alphas,
        "alpha_t": alpha,
        "sigma_t": sigma,
        "lambda_t": torch.log(alpha) - torch.log(sigma),
        **{name: vars(narrow)[name].double() for name in ENDS if name in vars(narrow)},
    }
    for name, value in derived.items():
        if hasattr(wide, name):
            setattr(wide, name, value)


ENDS = ("final_alpha_cumprod", "initial_alpha_cumprod")


def share_timesteps(torch: Any, wide: Any, narrow: Any, fractions: bool) -> None:
    """The timesteps that float32 cuts to other integers, and its LARGE sigmas and their alphas, from `narrow`.

    fractions: those that are not cut as well.
    """
    if len(wide.timesteps) == len(narrow.timesteps) and (fractions or not narrow.timesteps.is_floating_point()):
        wide.timesteps = narrow.timesteps
    if not hasattr(narrow, "alpha_t"):
        return
    if len(wide.sigmas) == len(narrow.sigmas):
        wide.sigmas = torch.where(narrow.sigmas < LARGE, wide.sigmas, narrow.sigmas.double())
    split = wide._sigma_to_alpha_sigma_t
    rounded = lambda sigma: tuple(part.double() for part in split(sigma.float()))
    wide._sigma_to_alpha_sigma_t = lambda sigma: split(sigma) if sigma < LARGE else rounded(sigma)


def same_roots(torch: Any) -> bool:
    """Whether PyTorch's float32 square roots are those of `square_root` here, which depends on the processor."""
    x = np.linspace(1, 4, 1000, dtype=np.float32)
    return bool(((torch.from_numpy(x) ** 0.5).numpy() == square_root(x)).all())


@contextlib.contextmanager
def roots_replaced(torch: Any) -> Iterator[None]:
    """Within, the float32 square roots of tensors are those of `square_root`."""
    power, root = torch.Tensor.__pow__, torch.Tensor.sqrt
    ours = lambda x: torch.from_numpy(square_root(x.numpy()))
    ask = lambda x: x.dtype == torch.float32
    torch.Tensor.__pow__ = lambda x, exponent: ours(x) if ask(x) and exponent == 0.5 else power(x, exponent)
    torch.Tensor.sqrt = lambda x: ours(x) if ask(x) else root(x)
    try:
        yield
    finally:
        torch.Tensor.__pow__, torch.Tensor.sqrt = power, root
