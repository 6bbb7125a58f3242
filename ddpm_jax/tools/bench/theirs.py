"""Our networks in PyTorch, with our weights: diffusers' class where that is installed, else one of this package."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.interop import diffusers as names
from ddpm_jax.interop.diffusers import to_diffusers
from ddpm_jax.samplers import Table
from ddpm_jax.tools.bench import torch_forms, torch_unet
from ddpm_jax.tools.bench.machine import version
from ddpm_jax.tools.bench.networks import Network


class Theirs(NamedTuple):
    """PyTorch, where its networks are, and what one computes in."""

    torch: Any
    device: str
    dtype: Any

    def images(self, array: Any) -> Any:
        """[B, H, W, C] as [B, C, H, W]."""
        array = np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2))
        return self.torch.from_numpy(array).to(self.device)

    def numbers(self, array: Any) -> Any:
        return self.torch.from_numpy(np.array(array)).to(self.device)

    def forms(self, network: Any) -> dict[str, Callable[[], torch_forms.Form]]:
        return torch_forms.forms(self.torch, network, max_autotune=self.device == "cuda")


def load(dtype: str) -> Theirs | str:
    """PyTorch on JAX's kind of device, or why there is none."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "torch is not installed: pip install 'ddpm_jax[parity]'"
    platform = jax.devices()[0].platform
    if platform not in ("cpu", "gpu"):
        return f"PyTorch is measured on CPUs and NVIDIA GPUs, JAX has a {platform}"
    if platform == "gpu":
        if not torch.cuda.is_available():
            return "JAX has a GPU and PyTorch has none"
        # What JAX does by default: TF32 in float32 matrix products and convolutions.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return Theirs(torch, "cuda" if platform == "gpu" else "cpu", getattr(torch, dtype))


def network(theirs: Theirs, ours: Network, params: Any) -> tuple[Any, str]:
    """(net(x [B, C, H, W], t [B]) with these parameters in float32, whose class it is)."""
    config = to_diffusers.unet_to_config(ours.model, ours.image_shape)
    weights = names.params_to_unet2d(params, config)
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        net, origin = torch_unet.unet(theirs.torch, config), "a U-Net written for this comparison"
    else:
        net, origin = diffusers.UNet2DModel(**config), f"UNet2DModel of diffusers {version('diffusers')}"
    torch_forms.weights_into(theirs.torch, net, weights)
    net = net.eval().to(theirs.device)
    return (_first(theirs.torch, net) if "diffusers" in origin else net), origin


def _first(torch: Any, net: Any) -> Any:
    """diffusers' network as one that returns its tensor."""

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any, t: Any) -> Any:
            return self.net(x, t, return_dict=False)[0]

    return First().eval()


def rows(table: Table) -> torch_forms.Rows:
    """The rows of a table that draws no noise, as PyTorch's loop takes them.

    Raises:
      ValueError: it draws noise.
    """
    update = np.asarray(table.rows.update)
    if update[:, :, -1].any():
        raise ValueError("PyTorch's loop runs samplers that draw no noise")
    columns = (np.asarray(column).tolist() for column in (table.rows.time, table.rows.alpha, table.rows.sigma))
    return list(zip(*columns, update[:, :, :-1].tolist(), strict=True))
