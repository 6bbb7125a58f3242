"""Speed of the U-Net beside that of a matrix product, interleaved, because other jobs come and go.

Run:       python experiments/bench_unet.py [cifar10|digits] [rounds]
Needs:     any device; on 2 CPU cores about 2 minutes; the package installed or on PYTHONPATH
Expect:    the CIFAR-10 network forward at 0.77 and forward + backward at 0.59 of the matrix product's speed or more
Measured:  2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8; medians of 3 rounds, GFLOP/s.
             cifar10: product 150, forward 182 (1.21 of it), forward + backward 140 (0.93), vmapped 118;
             temporaries 518 MiB, with remat 522: on a CPU XLA merges what remat computes twice
             digits: not run yet in its present size
"""

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from ddpm_jax.models import UNet

SIZE = 4096  # of the matrix product

# Model, batch, image shape.
NETWORKS = {
    "cifar10": (UNet(), 8, (32, 32, 3)),
    "digits": (
        UNet(
            channels=16,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            out_channels=1,
            num_groups=8,
        ),
        64,
        (8, 8, 1),
    ),
}


def product_flops(f: Callable[..., Any], *args: Any) -> int:
    """2 * multiplications in every convolution and matrix product of f(*args), counted in its jaxpr.

    Not XLA's cost analysis, which adds elementwise work, differs between devices, and leaves the padding out of
    convolutions.
    """
    return _of_jaxpr(jax.make_jaxpr(f)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> int:
    if equation.primitive.name == "cond":  # of forms for several platforms, the plain one has the most
        return max(_of_jaxpr(branch.jaxpr) for branch in equation.params["branches"])
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    return sum(_of_jaxpr(inner) for inner in jaxprs_in_params(equation.params))


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run of each job, one after the other, round by round; two rounds of warm-up are left out."""
    seconds = {name: [] for name in jobs}
    for _ in range(rounds + 2):
        for name, job in jobs.items():
            start = time.perf_counter()
            jax.block_until_ready(job())
            seconds[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in seconds.items()}


def gradient_memory(model: UNet, *args: Any) -> float:
    """MiB of temporaries in the compiled gradient of mean(model(x_t, t)^2), by XLA's memory analysis."""

    def loss(params: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
        output: Any = model.apply({"params": params}, x_t, t)
        return jnp.mean(output**2)

    found = jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis()
    return math.nan if found is None else found.temp_size_in_bytes / 2**20


def main(network: str = "cifar10", rounds: str = "9") -> None:
    model, batch, image = NETWORKS[network]
    key = jax.random.key(0)
    x_t, t = jax.random.normal(key, (batch, *image)), jnp.linspace(0.0, 999.0, batch)
    keys = jax.random.split(key, batch)
    params = jax.jit(model.init)(key, x_t, t)["params"]
    matrix = jax.random.normal(key, (SIZE, SIZE))

    def forward(params, x_t, t):
        return model.apply({"params": params}, x_t, t)

    def trained(params, x_t, t, keys) -> Any:
        return model.apply({"params": params}, x_t, t, train=True, dropout_keys=keys)

    def batched(params):
        return jnp.mean(trained(params, x_t, t, keys) ** 2)

    def vmapped(params):
        one = lambda x_t, t, key: trained(params, x_t[None], t[None], key[None])[0]
        return jnp.mean(jax.vmap(one)(x_t, t, keys) ** 2)

    multiply, run = jax.jit(jnp.matmul), jax.jit(forward)
    batched_gradient, vmapped_gradient = jax.jit(jax.grad(batched)), jax.jit(jax.grad(vmapped))
    flops = product_flops(forward, params, x_t, t)
    work = {
        f"matrix product {SIZE}^3": (2 * SIZE**3, lambda: multiply(matrix, matrix)),
        "forward": (flops, lambda: run(params, x_t, t)),
        "forward + backward": (3 * flops, lambda: batched_gradient(params)),
        "the same, vmapped": (3 * flops, lambda: vmapped_gradient(params)),
    }
    seconds = interleaved({name: job for name, (_, job) in work.items()}, int(rounds))

    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, flax {flax.__version__}, {platform.machine()}, {os.cpu_count()} CPUs, {device}")
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{network}: {size:,} parameters, batch {batch}, {flops / batch / 1e9:.3f} GFLOP forward per image")
    print("GFLOP/s counts 2 per multiplication in convolutions and matrix products, backward as twice forward\n")
    for name, values in seconds.items():
        speed = [work[name][0] / value / 1e9 for value in values]
        median = statistics.median(speed)
        milliseconds = 1e3 * statistics.median(values)
        spread = f"min {min(speed):5.0f}, max {max(speed):5.0f}"
        print(f"{name:22} {milliseconds:9.1f} ms  {median:6.0f} GFLOP/s ({spread})")
    plain, remat = (gradient_memory(replace(model, remat=remat), params, x_t, t) for remat in (False, True))
    print(f"\ntemporaries of the gradient: {plain:.0f} MiB, with remat {remat:.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
