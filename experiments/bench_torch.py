"""Speed of the CIFAR-10 U-Net here and in PyTorch: same weights, same batch, one job after the other, round by round.

Run:       pip install -e ".[parity]", then python experiments/bench_torch.py [rounds] [batch]
Needs:     2 CPU cores, a C++ compiler for torch.compile; about 5 minutes
Expect:    forward at least as fast as the best form of PyTorch, with backward at least 0.95 of it
Measured:  docs/cpu_speed.md: 1.23 forward, 0.99 with backward
"""

import copy
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch

from ddpm_jax.interop import diffusers as weights

CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
Forms = dict[str, dict[str, Callable[[], Any]]]  # name: pass: job
PAUSE = 0.1  # seconds before each job: threads of the one before may still spin


def torch_jobs(network: torch.nn.Module, x: torch.Tensor, t: torch.Tensor) -> Forms:
    """Forward and gradient of every form: as diffusers loads it, channels last, compiled, both."""

    def jobs(network: Any, x: torch.Tensor) -> dict[str, Callable[[], Any]]:
        def forward() -> Any:
            with torch.inference_mode():
                return network(x, t).sample

        def gradient() -> None:
            network.zero_grad(set_to_none=True)
            torch.mean(network(x, t).sample ** 2).backward()

        return {"forward": forward, "forward + backward": gradient}

    last = copy.deepcopy(network).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x_last = x.to(memory_format=torch.channels_last)
    return {
        "PyTorch eager": jobs(network, x),
        "PyTorch channels-last": jobs(last, x_last),
        "torch.compile": jobs(torch.compile(copy.deepcopy(network)), x),
        "torch.compile channels-last": jobs(torch.compile(copy.deepcopy(last)), x_last),
    }


def our_jobs(network: torch.nn.Module, x: torch.Tensor, t: torch.Tensor) -> tuple[dict[str, Callable[[], Any]], float]:
    """The same of ours with the same weights and the largest difference between the two outputs."""
    state_dict = {name: array.numpy() for name, array in network.state_dict().items()}
    model = weights.unet_from_config(CIFAR10)
    params = jax.tree.map(jnp.asarray, weights.unet2d_to_params(state_dict, CIFAR10))
    images, times = jnp.asarray(x.permute(0, 2, 3, 1).numpy()), jnp.asarray(t.numpy())

    def forward(params: Any) -> jax.Array:
        return model.apply({"params": params}, images, times)  # pyright: ignore[reportReturnType]

    passes = {"forward": forward, "forward + backward": jax.grad(lambda params: jnp.mean(forward(params) ** 2))}
    compiled = {name: jax.jit(f) for name, f in passes.items()}
    ours = {name: lambda f=f: jax.block_until_ready(f(params)) for name, f in compiled.items()}
    with torch.inference_mode():
        expected = network(x, t).sample.permute(0, 2, 3, 1).numpy()
    difference = float(np.abs(ours["forward"]() - expected).max() / np.abs(expected).max())
    return ours, difference


def main(rounds: str = "9", batch: str = "8") -> None:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**CIFAR10).eval()  # pyright: ignore[reportPrivateImportUsage]
    x, t = torch.randn(int(batch), 3, 32, 32), torch.linspace(0, 999, int(batch))
    ours, difference = our_jobs(network, x, t)
    forms = {"ddpm_jax": ours} | torch_jobs(network, x, t)

    versions = f"jax {jax.__version__}, flax {flax.__version__}, torch {torch.__version__}"
    print(f"{versions}, diffusers {diffusers.__version__}, {platform.machine()}, {os.cpu_count()} CPUs, float32")
    print(f"XLA_FLAGS: {os.environ.get('XLA_FLAGS', 'none')}")
    print(f"batch {batch}, medians of {rounds} rounds; outputs differ by {difference:.1e} of the largest\n")
    for pass_ in ("forward", "forward + backward"):
        jobs = {name: form[pass_] for name, form in forms.items()}
        seconds = {name: [] for name in jobs}
        for k in range(int(rounds) + 2):
            for name, job in jobs.items():
                time.sleep(PAUSE)
                start = time.perf_counter()
                job()
                if k >= 2:
                    seconds[name].append(time.perf_counter() - start)
        for name, values in seconds.items():
            # Round by round, so that a change of the machine's speed between rounds changes no ratio.
            ratio = statistics.median(a / b for a, b in zip(values, seconds["ddpm_jax"], strict=True))
            spread = f"min {1e3 * min(values):6.0f}, max {1e3 * max(values):6.0f}"
            median = 1e3 * statistics.median(values)
            print(f"{pass_:20} {name:28} {median:7.0f} ms ({spread}): ours is {ratio:.2f} x as fast")


if __name__ == "__main__":
    main(*sys.argv[1:])
