"""Sampling: our scan against a loop in Python, a scan by hand, its network calls alone, and PyTorch."""

import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import keys, samplers
from ddpm_jax.models import bind
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.samplers.run import step
from ddpm_jax.tools.bench import theirs, torch_forms
from ddpm_jax.tools.bench.blocks import Block, Facts
from ddpm_jax.tools.bench.flops import product_flops
from ddpm_jax.tools.bench.interleave import Job
from ddpm_jax.tools.bench.networks import Network, parameters
from ddpm_jax.tools.bench.settings import Say, Settings, compare

REFERENCE = "ddpm_jax"
FORMS = ("PyTorch eager", "PyTorch channels-last", "torch.compile", "torch.compile channels-last")
# What diffusers' DDIM is told so that it takes the steps of our table. Nothing is clipped: a network with random
# weights would drive all pixels to the ends, where every sampler agrees.
SCHEDULER = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False, "set_alpha_to_one": True}


def measure(settings: Settings, say: Say) -> list[Block]:
    """The same weights, x_T and steps of DDIM for all."""
    ours, shape = settings.ours, (settings.batch, *settings.ours.image_shape)
    params = parameters(ours)
    table, make_denoise = ddim(settings.num_steps)
    x_T = np.random.default_rng(1).standard_normal(shape, np.float32)
    on_device = jax.device_put(params)
    jobs = our_jobs(ours, make_denoise, table, on_device, jnp.asarray(x_T))
    say(f"sampling: compiling ours, {settings.label}")
    expected = np.asarray(jobs[REFERENCE]())
    torch_jobs, missing, facts = their_jobs(settings, params, table, x_T, expected)
    flops = settings.num_steps * product_flops(
        lambda x, t: bind(ours.model, params)(x, t), jnp.asarray(x_T), jnp.zeros(settings.batch)
    )
    jobs |= torch_jobs
    say(f"sampling: compiling and warming {sum(map(settings.asked_for, jobs))} contestants")
    found = compare(
        settings,
        f"{settings.num_steps} steps of DDIM, {settings.network}, batch {settings.batch}, {settings.dtype}",
        jobs,
        missing=missing,
        items=settings.batch,
        flops=dict.fromkeys(jobs, float(flops)),
        note="All take the same x_T, but for the pipeline, which draws its own and makes images of numbers.",
    )
    return [found, Facts("What was compared", ["what", "value"], facts)]


def ddim(num_steps: int) -> Preset:
    """DDIM as diffusers' scheduler takes its steps."""
    return samplers.from_diffusers_config({"_class_name": "DDIMScheduler", **SCHEDULER}, num_steps)


def our_jobs(ours: Network, make_denoise: Any, table: samplers.Table, params: Any, x_T: jax.Array) -> dict[str, Job]:
    """The scan; the same step by step from Python; DDIM's formula in a scan; the network alone as many times."""
    shape = x_T.shape
    denoise = lambda params: make_denoise(bind(ours.model, params))
    key = keys.make(0)
    scan = jax.jit(lambda params, x_T: samplers.sample(denoise(params), table, key, shape, x_T=x_T))
    one = jax.jit(lambda params, row, registers, z: step(denoise(params), row, registers, z))
    forward = jax.jit(lambda params, x, t: bind(ours.model, params)(x, t))
    by_hand = jax.jit(partial(ddim_by_hand, ours, table))
    rows = [
        jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf[k], jnp.float32), table.rows) for k in range(table.num_calls)
    ]
    z, t = jnp.zeros(shape), jnp.zeros(shape[0])
    registers = table.rows.update.shape[1]

    def python_loop() -> jax.Array:
        state = (jnp.float32(table.init) * x_T, *[z] * (registers - 1))
        for row in rows:
            state = one(params, row, state, z)
        return jax.block_until_ready(state[0])

    def calls_alone() -> jax.Array:
        x = x_T
        for _ in range(table.num_calls):
            x = forward(params, x, t)
        return jax.block_until_ready(x)

    return {
        REFERENCE: lambda: jax.block_until_ready(scan(params, x_T)),
        "ddpm_jax, loop in Python": python_loop,
        "ddpm_jax, DDIM by hand": lambda: jax.block_until_ready(by_hand(params, x_T)),
        "ddpm_jax, network calls alone": calls_alone,
    }


def ddim_by_hand(ours: Network, table: samplers.Table, params: Any, x_T: jax.Array) -> jax.Array:
    """x <- a x_0 + b eps in a scan, x_0 = (x - sigma eps) / alpha: what the table's interpreter is set against."""
    rows, update = table.rows, np.asarray(table.rows.update)
    numbers = np.stack([rows.time, rows.alpha, rows.sigma, update[:, 0, -3], update[:, 0, -2]], axis=1)
    model_fn = bind(ours.model, params)

    def body(x: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        time, alpha, sigma, a, b = row
        eps = model_fn(x, jnp.full(x.shape[:1], time))
        return a * (x - sigma * eps) / alpha + b * eps, None

    return jax.lax.scan(body, jnp.float32(table.init) * x_T, jnp.asarray(numbers, jnp.float32))[0]


def their_jobs(
    settings: Settings, params: Any, table: samplers.Table, x_T: np.ndarray, expected: np.ndarray
) -> tuple[dict[str, Job], dict[str, str], list[list[Any]]]:
    """(jobs, what is missing and why, what was compared): the outputs must be ours."""
    there = theirs.load(settings.dtype)
    if isinstance(there, str):
        return {}, dict.fromkeys((*FORMS, PIPELINE), there), []
    torch = there.torch
    network, origin = theirs.network(there, settings.ours, params)
    network = network.to(there.dtype)
    rows, start = theirs.rows(table), there.images(float(table.init) * x_T)
    jobs = {
        name: lazily(lambda make=make: torch_forms.sampling(torch, make(), rows, start))
        for name, make in there.forms(network).items()
    }
    output = torch_forms.sample(torch, network, rows, start).float().cpu().numpy().transpose(0, 2, 3, 1)
    difference = float(np.abs(output - expected).max() / np.abs(expected).max())
    facts = [
        ["network in PyTorch", origin],
        ["largest difference of its images, of the largest pixel", f"{difference:.1e}"],
    ]
    if "diffusers" not in origin:
        return jobs, {PIPELINE: "diffusers is not installed: pip install 'ddpm_jax[parity]'"}, facts
    return jobs | {PIPELINE: pipeline(settings, torch, network.net)}, {}, facts


PIPELINE = "diffusers' DDIMPipeline"


def lazily(make: Any) -> Job:
    """The job that `make` returns, made at its first run: so that what cannot be made fails as a job does."""
    made: list[Job] = []

    def run() -> Any:
        if not made:
            made.append(make())
        return made[0]()

    return run


def pipeline(settings: Settings, torch: Any, network: Any) -> Job:
    """As its users call it: noise to images as NumPy arrays."""
    diffusers = importlib.import_module("diffusers")
    pipe = diffusers.DDIMPipeline(network, diffusers.DDIMScheduler(**SCHEDULER))
    pipe.set_progress_bar_config(disable=True)
    call = lambda: pipe(settings.batch, num_inference_steps=settings.num_steps, output_type="np")
    return torch_forms.synchronized(torch, call)
