"""What the table's interpreter costs beside a DDIM scan written by hand, and what memory more steps take.

Run:       python experiments/bench_sampler.py [rounds]
Needs:     any device; on 2 CPU cores about 3 minutes
Expect:    at most 1 % on the CIFAR-10 U-Net, at most 3 % on four layers of 32 channels; memory independent of steps
Measured:  2 CPU cores (AMD EPYC), 24 GiB, nothing else running, Python 3.11, jax 0.10.2, flax 0.12.8;
             medians of 5 rounds:
             four layers: ddim 1.008 (0.891 to 1.020), 2M 1.013 (0.987 to 1.041), UniPC-3 1.040 (0.976 to 1.158)
             U-Net:       ddim 1.005 (0.924 to 1.013), 2M 0.997 (0.931 to 1.010), UniPC-3 1.004 (0.984 to 1.127)
             UniPC-3 has four registers where DDIM has one
             memory: 17.565 MB at 10 steps, 17.569 MB at 1000; 9.763 and 9.767 MB: the table itself
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax import samplers, schedules
from ddpm_jax.models import UNet, bind
from ddpm_jax.process import ModelFn


class FourLayers(nn.Module):
    """Four 3x3 convolutions, 32 channels in between."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        for channels in (32, 32, 32):
            x = nn.silu(nn.Conv(channels, (3, 3))(x))
        return nn.Conv(3, (3, 3))(x)


def ddim_by_hand(model_fn: ModelFn, grid: samplers.Grid, x: jax.Array) -> jax.Array:
    """x_t = alpha_t x_0 + sigma_t eps, in a scan."""
    levels = jnp.asarray(grid.levels)

    def body(x: jax.Array, s_t: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        (time, alpha_s, sigma_s), (_, alpha_t, sigma_t) = s_t
        eps = model_fn(x, jnp.full(x.shape[:1], time))
        return alpha_t * (x - sigma_s * eps) / alpha_s + sigma_t * eps, None

    return jax.lax.scan(body, x, (levels[:-1], levels[1:]))[0]


def seconds(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(job())
    return time.perf_counter() - start


def compare(name: str, model: nn.Module, shape: tuple[int, ...], num_steps: int, rounds: int) -> None:
    """Print the medians of table / hand, run by run."""
    key, schedule = jax.random.key(0), schedules.linear()
    params = jax.jit(model.init)(key, jnp.zeros(shape), jnp.zeros(shape[0]))["params"]
    grid = samplers.grids.sections(schedule, num_steps)
    x_T = jax.random.normal(key, shape)
    hand = jax.jit(lambda params: ddim_by_hand(bind(model, params), grid, x_T))

    def run(table: samplers.Table) -> Any:
        # The key is data here, so that noise that is drawn is drawn at run time.
        draw = lambda params, key: samplers.sample(samplers.denoiser(bind(model, params)), table, key, shape, x_T=x_T)
        return jax.jit(draw)

    tables = {
        "ddim": samplers.ddim(grid),
        "dpm_solver_pp 2m": samplers.dpm_solver_pp(grid),
        "unipc 3": samplers.unipc(grid, order=3),
    }
    draws = {label: run(table) for label, table in tables.items()}
    ratios: dict[str, list[float]] = {label: [] for label in draws}
    for i in range(rounds + 1):
        for label, draw in draws.items():
            ratio = seconds(lambda draw=draw: draw(params, key)) / seconds(lambda: hand(params))
            if i:  # the first round compiles
                ratios[label].append(ratio)
    for label, values in ratios.items():
        spread = f"min {min(values):.3f}, max {max(values):.3f}"
        print(f"{name}: {label} / DDIM by hand: median {statistics.median(values):.3f} ({spread})")
    memory = [
        run(samplers.ddim(samplers.grids.sections(schedule, n))).lower(params, key).compile().memory_analysis()
        for n in (10, 100, 1000)
    ]
    print(f"{name}: temporary bytes at 10, 100, 1000 steps: {[m.temp_size_in_bytes for m in memory]}")


def main(rounds: str = "7") -> None:
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, flax {flax.__version__}, {platform.machine()}, {os.cpu_count()} CPUs, {device}")
    compare("four layers, 64x32x32x3", FourLayers(), (64, 32, 32, 3), 10, int(rounds))
    compare("CIFAR-10 U-Net, batch 2", UNet(), (2, 32, 32, 3), 5, int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
