"""The PyTorch side: torch and diffusers where they are installed, and a scheduler run with noise that is given."""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.tools.parity.mixture import Answer


class Libraries(NamedTuple):
    """The modules torch and diffusers."""

    torch: Any
    diffusers: Any


def libraries() -> Libraries:
    """torch and diffusers, quiet.

    Raises:
      ImportError: one of them is not installed; says how to install it.
    """
    try:
        torch, diffusers = importlib.import_module("torch"), importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError(f"parity needs PyTorch and diffusers: pip install 'ddpm_jax[parity]' ({error})") from error
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    return Libraries(torch, diffusers)


def versions() -> dict[str, str]:
    """Of everything that takes part; what is not installed is not in it."""
    found = {}
    for name in ("torch", "diffusers", "jax", "jaxlib", "flax", "optax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class Calls(NamedTuple):
    """Where the network was called, [B, H, W, C] each, at which times; the last of xs is the result."""

    xs: list[np.ndarray]
    times: list[float]


@contextlib.contextmanager
def noise_replaced(torch: Any, given: np.ndarray) -> Iterator[None]:
    """torch.randn returns `given` [B, H, W, C], as [B, C, H, W]; one draw at most.

    Raises:
      RuntimeError: a second draw, or one of another shape.
    """
    original, drawn = torch.randn, []

    def draw(*shape: Any, **options: Any) -> Any:
        size = tuple(np.atleast_1d(shape[0] if len(shape) == 1 else shape).tolist())
        value = given.transpose(0, 3, 1, 2)
        drawn.append(size)
        if size != value.shape or len(drawn) > 1:
            raise RuntimeError(f"one draw of shape {value.shape} is given a step, but a scheduler drew {drawn}")
        return torch.from_numpy(np.ascontiguousarray(value)).to(options.get("dtype") or torch.float32)

    torch.randn = draw
    try:
        yield
    finally:
        torch.randn = original


def nchw(torch: Any, images: np.ndarray, dtype: Any = np.float32) -> Any:
    """[B, H, W, C] as a tensor [B, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype))


def nhwc(tensor: Any) -> np.ndarray:
    """A tensor [B, C, H, W] as float64 [B, H, W, C]."""
    return tensor.detach().double().numpy().transpose(0, 2, 3, 1)


def calls(
    torch: Any,
    scheduler: Any,
    answer: Answer,
    x_T: np.ndarray,
    noise: np.ndarray,
    step_options: Mapping[str, Any] | None = None,
    dtype: Any = np.float32,
    x_0: np.ndarray | None = None,
    start: int = 0,
) -> Calls:
    """A diffusers scheduler, whose timesteps are set, run as a pipeline runs it, from init_noise_sigma x_T.

    Or from x_0 with the noise x_T of the level of step `start`, as an img2img pipeline does.

    Args:
      answer: the network.
      x_T: [B, H, W, C] standard normal.
      noise: [N, B, H, W, C] standard normal, one for each step that draws.
      step_options: of scheduler.step.
      dtype: of x, and so of what the scheduler computes from it.
      x_0: [B, H, W, C], where it begins in the middle.
      start: where that is.
    """
    timesteps, x = scheduler.timesteps, nchw(torch, x_T, dtype)
    if x_0 is None:
        x = x * scheduler.init_noise_sigma
    else:
        first = start * getattr(scheduler, "order", 1)
        timesteps = timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        image = nchw(torch, x_0, dtype)
        if type(scheduler).__name__ == "SASolverScheduler":
            # Its add_noise has the level of the timestep, which its sigmas may lie beside.
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[first])
            x = alpha * image + sigma * x
        elif hasattr(scheduler, "add_noise"):
            x = scheduler.add_noise(image, x, timesteps[:1])
        else:  # IPNDMScheduler
            x = scheduler.alphas[start] * image + scheduler.betas[start] * x
    xs, times = [], []
    for k, t in enumerate(timesteps):
        told = scheduler.scale_model_input(x, t)
        xs.append(nhwc(told))
        times.append(float(t))
        output = nchw(torch, answer(xs[-1], times[-1]), dtype)
        with noise_replaced(torch, noise[k]):
            x = scheduler.step(output, t, x, **(step_options or {})).prev_sample
    return Calls([*xs, nhwc(x)], times)


def set_timesteps(scheduler: Any, num_steps: int, timesteps: Sequence[int] | None = None) -> Any:
    """The scheduler with num_steps, or at these timesteps."""
    if timesteps is None:
        scheduler.set_timesteps(num_steps)
    else:
        scheduler.set_timesteps(timesteps=list(timesteps))
    return scheduler
