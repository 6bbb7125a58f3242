"""The network, forward and with its gradient: beside a matrix product, and PyTorch with the same weights."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import keys
from ddpm_jax.models import bind
from ddpm_jax.tools.bench import theirs, torch_forms
from ddpm_jax.tools.bench.blocks import PRODUCT, Block, Facts
from ddpm_jax.tools.bench.flops import product_flops
from ddpm_jax.tools.bench.interleave import Job
from ddpm_jax.tools.bench.networks import parameters
from ddpm_jax.tools.bench.sampling import FORMS, REFERENCE, lazily
from ddpm_jax.tools.bench.settings import Say, Settings, compare

PASSES = ("forward", "forward + backward")
SIZE = {"cpu": 4096, "gpu": 8192}  # of the matrix product


def measure(settings: Settings, say: Say) -> list[Block]:
    """Each pass is a comparison of its own. Without dropout; the loss is the mean of the output's square."""
    params = parameters(settings.ours)
    shape = (settings.batch, *settings.ours.image_shape)
    x, t = np.random.default_rng(1).standard_normal(shape, np.float32), np.linspace(0, 999, settings.batch)
    t = t.astype(np.float32)
    flops = product_flops(lambda x, t: bind(settings.ours.model, params)(x, t), jnp.asarray(x), jnp.asarray(t))
    ours = our_jobs(settings, params, jnp.asarray(x), jnp.asarray(t))
    others, missing, facts = their_jobs(settings, params, x, t)
    product, size = matrix_product(settings.dtype)
    found: list[Block] = []
    for name, factor in zip(PASSES, (1, 3), strict=True):
        jobs = {REFERENCE: ours[name], PRODUCT: product, **others.get(name, {})}
        say(
            f"network: compiling and warming {sum(map(settings.asked_for, jobs))} contestants, {name}, {settings.label}"
        )
        found.append(
            compare(
                settings,
                f"{name}, {settings.network}, batch {settings.batch}, {settings.dtype}",
                jobs,
                missing=missing,
                items=settings.batch,
                flops=dict.fromkeys(jobs, float(factor * flops)) | {PRODUCT: 2.0 * size**3},
                note="FLOP/s counts 2 per multiplication of convolutions and products, backward as twice forward.",
            )
        )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    facts = [["parameters", f"{count:,}"], ["GFLOP forward per image", f"{flops / settings.batch / 1e9:.3f}"],
             ["size of the matrix product", size], *facts]  # fmt: skip
    return [*found, Facts("What was compared", ["what", "value"], facts)]


def our_jobs(settings: Settings, params: Any, x: jax.Array, t: jax.Array) -> dict[str, Job]:
    """Both passes, compiled."""
    forward = lambda params, x, t: bind(settings.ours.model, params)(x, t)
    passes = {
        "forward": jax.jit(forward),
        "forward + backward": jax.jit(jax.grad(lambda *a: jnp.mean(forward(*a) ** 2))),
    }
    on_device = jax.device_put(params)
    return {name: lambda f=f: jax.block_until_ready(f(on_device, x, t)) for name, f in passes.items()}


def matrix_product(dtype: str) -> tuple[Job, int]:
    """(n x n times n x n in this dtype, n), whose speed is what a network could at best have."""
    size = SIZE[jax.devices()[0].platform] if jax.devices()[0].platform in SIZE else SIZE["gpu"]
    matrix = jax.random.normal(keys.make(0), (size, size), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(multiply(matrix, matrix)), size


def their_jobs(
    settings: Settings, params: Any, x: np.ndarray, t: np.ndarray
) -> tuple[dict[str, dict[str, Job]], dict[str, str], list[list[Any]]]:
    """(jobs by pass, what is missing and why, what was compared)."""
    there = theirs.load(settings.dtype)
    if isinstance(there, str):
        return {}, dict.fromkeys(FORMS, there), []
    torch = there.torch
    network, origin = theirs.network(there, settings.ours, params)
    images, times = there.images(x), there.numbers(t)
    dtype = there.dtype
    half, halved = dtype != torch.float32, images.to(dtype)
    low = copy.deepcopy(network).to(dtype)
    jobs = {
        "forward": {
            name: lazily(lambda make=make: torch_forms.forward(torch, make(), halved, times))
            for name, make in there.forms(low).items()
        },
        "forward + backward": {
            name: lazily(lambda make=make: torch_forms.gradient(torch, make(), images, times, dtype))
            for name, make in there.forms(network).items()
        },
    }
    with torch.inference_mode():
        expected = network(images, times).float().cpu().numpy().transpose(0, 2, 3, 1)
    found = np.asarray(jax.jit(lambda x, t: bind(settings.ours.model, params)(x, t))(x, t))
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    facts = [
        ["network in PyTorch", origin + (", bfloat16 forward, autocast backward" if half else "")],
        ["largest difference between the outputs (PyTorch's in float32), of the largest", f"{difference:.1e}"],
    ]
    return jobs, {}, facts
