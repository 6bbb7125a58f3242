"""A whole training step, ours and PyTorch's, and what reads batches for it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import build, data, keys
from ddpm_jax.config.run import ObjectiveConfig, OptimizerConfig, ScheduleConfig
from ddpm_jax.data.records import from_arrays
from ddpm_jax.models import bind
from ddpm_jax.tools.bench import theirs, torch_forms
from ddpm_jax.tools.bench.blocks import Block, Facts
from ddpm_jax.tools.bench.flops import product_flops
from ddpm_jax.tools.bench.interleave import Job
from ddpm_jax.tools.bench.networks import parameters
from ddpm_jax.tools.bench.sampling import FORMS, REFERENCE, lazily
from ddpm_jax.tools.bench.settings import Say, Settings, compare
from ddpm_jax.train import state, step, task
from ddpm_jax.train.tasks.diffusion import Diffusion

RECIPE = OptimizerConfig(learning_rate=2e-4, warmup_steps=0, decay_steps=None, clip_norm=1.0, ema_decay=0.9999)
EXAMPLES = 10_000  # of the data pipeline's set


def measure(settings: Settings, say: Say) -> list[Block]:
    """One step of L_simple: uint8 images in, t and eps drawn, dropout, gradient, clipped Adam, averaged parameters."""
    params = parameters(settings.ours)
    shape = (settings.batch, *settings.ours.image_shape)
    batch = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    x, t = jnp.zeros(shape), jnp.zeros(settings.batch)
    flops = 3.0 * product_flops(lambda x, t: bind(settings.ours.model, params)(x, t), x, t)
    jobs = {REFERENCE: our_job(settings, params, batch, jax.devices()[:1])}
    others, missing, facts = their_jobs(settings, params, batch)
    jobs |= others
    say(f"training: compiling and warming {sum(map(settings.asked_for, jobs))} contestants, {settings.label}")
    title = f"training step, {settings.network}, batch {settings.batch}, {settings.dtype}"
    found = compare(settings, title, jobs, missing=missing, items=settings.batch, flops=dict.fromkeys(jobs, flops))
    facts += [["dropout", settings.ours.model.dropout], ["Adam, clipping, average", str(dataclasses.asdict(RECIPE))]]
    return [found, Facts("What was compared", ["what", "value"], facts), pipeline(settings)]


def our_job(settings: Settings, params: Any, batch: np.ndarray, devices: Sequence[jax.Device]) -> Job:
    """The step that `ddpm-jax train` takes, on its own result again and again."""
    schedule, objective = build.make_schedule(ScheduleConfig()), ObjectiveConfig()
    diffusion = Diffusion(
        settings.ours.model,
        build.make_objective(objective, schedule),
        build.make_timestep_sampler(objective, schedule),
        state.make_optimizer(RECIPE),
        keys.make(0),
        settings.ours.image_shape,
    )
    train_step = step.make_train_step(diffusion, ema_decay=RECIPE.ema_decay, devices=devices)
    now = [task.start(diffusion, jax.device_put(params))]
    sharded = step.shard(lambda rows: {"image": batch[rows]}, len(batch), devices)

    def run() -> None:
        now[0], metrics = train_step(now[0], sharded)
        jax.block_until_ready((now[0], metrics))

    return run


def their_jobs(
    settings: Settings, params: Any, batch: np.ndarray
) -> tuple[dict[str, Job], dict[str, str], list[list[Any]]]:
    """(jobs, what is missing and why, what was compared)."""
    there = theirs.load(settings.dtype)
    if isinstance(there, str):
        return {}, dict.fromkeys(FORMS, there), []
    torch, (network, origin) = there.torch, theirs.network(there, settings.ours, params)
    schedule = build.make_schedule(ScheduleConfig())
    assert RECIPE.clip_norm is not None and RECIPE.learning_rate is not None
    recipe = Recipe(
        there.numbers(np.asarray(schedule.alphas_cumprod, np.float32)),
        RECIPE.learning_rate,
        RECIPE.clip_norm,
        RECIPE.ema_decay,
        there.dtype,
    )
    images = there.images(batch)
    jobs = {
        name: lazily(lambda make=make: in_pytorch(torch, make(), images, recipe))
        for name, make in there.forms(network).items()
    }
    return jobs, {}, [["network in PyTorch", origin]]


class Recipe(NamedTuple):
    """What a training step needs beside network and batch: as config.run.OptimizerConfig."""

    alphas_cumprod: Any  # [T] tensor on the device
    learning_rate: float
    clip_norm: float
    ema_decay: float
    dtype: Any


def in_pytorch(torch: Any, form: torch_forms.Form, batch: Any, recipe: Recipe) -> Job:
    """One step of L_simple on uint8 [B, C, H, W]: t and eps drawn, Adam on clipped gradients, average of parameters."""
    network = form.network.train()
    parameters = list(network.parameters())
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate)
    device, count = batch.device, len(recipe.alphas_cumprod)

    def run() -> None:
        x_0 = form.placed(batch.float() / 127.5 - 1)
        t, eps = torch.randint(count, (len(x_0),), device=device), torch.randn_like(x_0)
        alpha = recipe.alphas_cumprod[t][:, None, None, None]
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * eps
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, recipe.dtype, enabled=recipe.dtype != torch.float32):
            loss = torch.mean((network(x_t, t).float() - eps) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - recipe.ema_decay)

    return torch_forms.synchronized(torch, run)


def pipeline(settings: Settings) -> Block:
    """Batches of a set in memory, mirrored at random, one after the other: what a step must not wait for."""
    shape = settings.ours.image_shape
    images = np.random.default_rng(0).integers(0, 256, (EXAMPLES, *shape), np.uint8)
    source, steps = from_arrays("random images", {"image": images}), iter(range(2**31))
    read = lambda k: data.batch(source, 0, k, settings.batch, flip=True)

    def prefetched() -> None:
        for _ in data.prefetch(read, range(16)):
            pass

    def plain() -> None:
        for _ in range(16):
            read(next(steps))

    return compare(
        dataclasses.replace(settings, only=()),
        f"data pipeline: 16 batches of {settings.batch} of {EXAMPLES} images {shape} in memory, mirrored at random",
        {"read": plain, "read ahead in threads": prefetched},
        reference="read",
        items=16 * settings.batch,
    )
