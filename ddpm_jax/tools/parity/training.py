"""Training runs recorded in PyTorch, followed step by step: the same batches, times and noise, our loss and updates."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file

from ddpm_jax import objectives, schedules
from ddpm_jax.config.run import OptimizerConfig
from ddpm_jax.interop import diffusers
from ddpm_jax.models import bind
from ddpm_jax.tools.parity.results import Difference, Result, along, compared, not_compared, relative
from ddpm_jax.train import ema, state

GROUP = "training"
LOSSES, PARAMETERS = 1e-4, 1e-3  # relative
RUNS = ("ddpm_adam", "iddpm_hybrid_adamw")


class Trajectory(NamedTuple):
    """What a run leaves: a number for every step, and parameters by their names in PyTorch."""

    losses: list[float]
    gradient_norms: list[float]  # before clipping
    final: dict[str, np.ndarray]
    average: dict[str, np.ndarray]


class Recording(NamedTuple):
    """A run in PyTorch, and all that was random in it."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    initial: dict[str, np.ndarray]
    trajectory: Trajectory


def compare(golden: Path | None) -> Iterator[Result]:
    """Losses and gradients at every step, parameters and their average after the last."""
    for name in RUNS:
        if golden is None:
            yield not_compared(GROUP, name, "", "a recorded run of guided-diffusion: needs --golden")
        else:
            yield from compare_run(name, read(golden, name))


def read(golden: Path, name: str) -> Recording:
    """The recording of training/<name>.

    Raises:
      FileNotFoundError: a file of it is not in the folder.
    """
    path = golden / "training" / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no recording training/{name}.npz in {golden}")
    with np.load(path, allow_pickle=False) as file:
        arrays, meta = {key: file[key] for key in file.files if key != "meta"}, json.loads(str(file["meta"]))
    initial, final, average = (
        load_file(golden / "training" / f"{name}.{part}.safetensors") for part in ("init", "final", "ema")
    )
    return Recording(
        arrays, meta, initial, Trajectory(list(arrays["losses"]), list(arrays["grad_norms"]), final, average)
    )


def compare_run(name: str, recording: Recording) -> Iterator[Result]:
    """Our trajectory beside the recorded one."""
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
        ours = follow(recording)
    theirs = recording.trajectory
    against, count = f"guided-diffusion, {recording.meta['optimizer']['name']}", len(theirs.losses)
    for what in ("losses", "gradient_norms"):
        pair = [[np.asarray(value) for value in getattr(each, what)] for each in (ours, theirs)]
        found = along(*pair, tolerance=LOSSES)
        yield compared(GROUP, f"{name}: {what.replace('_', ' ')} of {count} steps", against, found, LOSSES)
    skipped = set(recording.meta["ill_conditioned"])
    note = (
        f"without the {len(skipped)} key biases of attention, whose gradient is 0 but for rounding: recording's README"
    )
    for what, item in (("final", "final parameters"), ("average", "average of the parameters")):
        expected = getattr(theirs, what)
        kept = [key for key in expected if key not in skipped]
        largest = max(relative(getattr(ours, what)[key], expected[key]) for key in kept)
        found = Difference(largest, None if largest <= PARAMETERS else count - 1)
        yield compared(GROUP, f"{name}: {item}, each of {len(kept)} arrays", against, found, PARAMETERS, note)


def follow(recording: Recording) -> Trajectory:
    """The run again, from the recorded initial parameters."""
    arrays, meta = recording.arrays, recording.meta
    model = diffusers.unet_from_config(meta["config"])
    params = diffusers.unet2d_to_params(recording.initial, meta["config"])
    optimizer, loss_of = optimizer_of(meta), objective_of(meta)
    decay = float(meta["ema"].split("rate=")[1].split(")")[0])

    @jax.jit
    def step(k: jax.Array, params: Any, average: Any, moments: Any, batch: dict[str, jax.Array]) -> Any:
        given = {"y": batch["y"]} if "y" in batch else {}

        def loss(params: Any) -> jax.Array:
            return loss_of(bind(model, params, **given), batch["x"], batch["t"], batch["noise"]).mean()

        value, slopes = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(slopes, moments, params)
        params = optax.apply_updates(params, updates)
        # The recorded average begins with the initial parameters, ours would with those after the first step.
        average = ema.update(average, params, k + 1, decay)
        return params, average, moments, value, optax.global_norm(slopes)

    average, moments = params, optimizer.init(params)
    losses, norms = [], []
    for k in range(len(arrays["losses"])):
        images = {key: jnp.asarray(arrays[key][k].transpose(0, 2, 3, 1)) for key in ("x", "noise")}
        numbers = {key: jnp.asarray(arrays[key][k], jnp.int32) for key in ("t", "y") if key in arrays}
        params, average, moments, value, norm = step(jnp.int32(k), params, average, moments, images | numbers)
        losses.append(float(value))
        norms.append(float(norm))
    final, mean = (
        diffusers.params_to_unet2d(jax.tree.map(np.asarray, tree), meta["config"]) for tree in (params, average)
    )
    return Trajectory(losses, norms, final, mean)


def optimizer_of(meta: dict[str, Any]) -> optax.GradientTransformation:
    """The recorded optimizer; Adam is the one that `train` uses.

    Raises:
      ValueError: an optimizer that is not known here.
    """
    options = meta["optimizer"]
    clip = float(meta["grad_clip"].split("(params, ")[1].split(")")[0])
    beta1, beta2 = options["betas"]
    if options["name"] == "torch.optim.Adam" and options["warmup"] is None:
        config = OptimizerConfig(
            learning_rate=options["lr"], warmup_steps=0, decay_steps=None, clip_norm=clip, beta1=beta1, beta2=beta2
        )
        return state.make_optimizer(config)
    if options["name"] != "torch.optim.AdamW" or options["warmup"] != "lr*min(1,(step+1)/8), step from 0":
        raise ValueError(f"unknown optimizer of the recording: {options}")
    rate = lambda step: options["lr"] * jnp.minimum(1, (step + 1) / 8)
    adamw = optax.adamw(rate, beta1, beta2, weight_decay=options["weight_decay"])
    return optax.chain(optax.clip_by_global_norm(clip), adamw)


def objective_of(meta: dict[str, Any]) -> Callable[..., jax.Array]:
    """(model_fn, x_0, t, eps) -> losses [B].

    Raises:
      ValueError: a loss that is not known here.
    """
    process = meta["diffusion"]
    schedule = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine}[process["schedule"]](process["T"])
    options: dict[str, Any] = {"prediction": "eps"}
    if process["loss"] == "RESCALED_MSE" and process["var"] == "LEARNED_RANGE":
        loss = partial(objectives.hybrid, variance="learned_range")
    elif process["loss"] == "MSE" and process["var"] == "FIXED_LARGE":
        loss = objectives.simple
    else:
        raise ValueError(f"unknown loss of the recording: {process}")
    return lambda model_fn, x_0, t, eps: loss(model_fn, schedule, x_0, t, eps, **options)
