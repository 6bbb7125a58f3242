"""Samplers on a trained network: how far they are from a many-step teacher, and from real images, by network calls."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, images, keys, opening, samplers
from ddpm_jax.config.run import DataConfig
from ddpm_jax.evaluate.samples import frechet
from ddpm_jax.samplers.catalogue import CATALOGUE, make_table
from ddpm_jax.tools.bench import components
from ddpm_jax.tools.bench.blocks import Block, Curves, Facts, Missing
from ddpm_jax.tools.bench.settings import Say, Settings
from ddpm_jax.trained import Trained

STEPS = (5, 6, 8, 10, 15, 20, 30)
MOST_CALLS = 60
TEACHER = "dpm_solver_pp_2m"
TEACHER_STEPS = (500, 1000)  # the second is the teacher; the first says how far that is from its own limit
MANY = 200
PAIRS, SAMPLES, CHUNK = 256, 1024, 256  # x_T that the teacher sees, images of each metric, images at once


def measure(settings: Settings, say: Say) -> list[Block]:
    """Error: root mean square difference per pixel, images in [-1, 1], from the same x_T. Distance: of `components`."""
    assert settings.workdir is not None
    trained = opening.open(settings.workdir, say)
    if trained.first_stage is not None:
        raise ValueError("bench solvers compares images with real ones, and this network denoises latents")
    trained.check_conditions("bench solvers")
    real = real_images(opening.data_of(settings.workdir, trained, **settings.data))
    if real.shape[1:] != trained.image_shape:
        raise ValueError(f"the images have shape {real.shape[1:]}, the network's {trained.image_shape}")
    shape = (CHUNK, *trained.image_shape)
    denoise = lambda params: trained.denoiser(trained.model_fn(params))
    run = samplers.Runner(denoise, shape, MOST_CALLS)
    params, key = jax.device_put(trained.params), keys.make(0)
    axes = components.projection(real)
    reference = components.gaussian(real, axes)
    score = lambda drawn: frechet.distance(components.gaussian(drawn, axes), reference)

    def draw(table: samplers.Table, count: int) -> np.ndarray:
        found = [np.asarray(run(table, key, params, first_index=first)) for first in range(0, count, CHUNK)]
        return np.concatenate(found)[:count]

    say(f"solvers: the teacher, {TEACHER} with {TEACHER_STEPS[1]} steps")
    half, teacher = (taught(trained, denoise, params, key, n, PAIRS) for n in TEACHER_STEPS)
    errors: dict[str, list[list[float]]] = {}
    scores: dict[str, list[list[float]]] = {}
    missing, rows = {}, []
    for name, entry in CATALOGUE.items():
        for num_steps in STEPS:
            table = table_of(name, trained, num_steps)
            if isinstance(table, str):
                missing[f"{name}, {num_steps} steps"] = table
                continue
            drawn = draw(table, SAMPLES)
            found = score(images.to_uint8(drawn))
            scores.setdefault(name, []).append([table.num_calls, found])
            error = None if entry.stochastic else rms(drawn[:PAIRS], teacher)
            if error is not None:
                errors.setdefault(name, []).append([table.num_calls, error])
            rows.append([name, num_steps, table.num_calls, "" if error is None else f"{error:.5f}", f"{found:.4f}"])
        say(f"solvers: {name}")
    own = score(images.to_uint8(taught(trained, denoise, params, key, MANY, SAMPLES)))
    facts = [
        ["teacher", f"{TEACHER}, {TEACHER_STEPS[1]} steps"],
        [f"its difference from {TEACHER_STEPS[0]} steps", f"{rms(half, teacher):.6f}"],
        ["pairs", PAIRS], ["samples of each distance", SAMPLES], ["real images", len(real)],
        ["principal components of the real images that distances are taken in", axes.shape[1]],
        [f"Fréchet distance of {TEACHER} with {MANY} steps", f"{own:.4f}"],
        ["Fréchet distance of one half of the real images from the other", f"{halves(real, axes):.4f}"],
    ]  # fmt: skip
    calls, header = "network calls", ["sampler", "steps", "calls", "error", "Fréchet distance"]
    return [
        Facts("What was measured", ["what", "value"], facts),
        Curves(
            "error to the teacher", calls, "root mean square difference", errors, "xy", "Samplers that draw no noise."
        ),
        Curves("Fréchet distance from real images", calls, "Fréchet distance", scores, "xy"),
        Facts("all", header, rows),
        *([Missing("Not measured", missing)] if missing else []),
    ]


def table_of(name: str, trained: Trained, num_steps: int) -> samplers.Table | str:
    """A sampler on its own grid, or why it cannot be run on this network with so many steps."""
    try:
        table = make_table(name, trained.schedule, num_steps, variance=trained.variance)
    except ValueError as error:
        return str(error)
    return table if table.num_calls <= MOST_CALLS else f"{table.num_calls} network calls, more than {MOST_CALLS}"


def taught(
    trained: Trained,
    denoise: Callable[..., samplers.Denoise],
    params: Any,
    key: jax.Array,
    num_steps: int,
    count: int,
) -> np.ndarray:
    """[count, H, W, C] of the teacher, from the x_T that the samplers have too: image i has the same in any batch."""
    table, shape = make_table(TEACHER, trained.schedule, num_steps), (CHUNK, *trained.image_shape)
    draw = jax.jit(lambda params, first: samplers.sample(denoise(params), table, key, shape, first_index=first))
    return np.concatenate([np.asarray(draw(params, np.uint32(first))) for first in range(0, count, CHUNK)])[:count]


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean square difference of the pixels."""
    return float(np.sqrt(np.mean((np.float64(a) - np.float64(b)) ** 2)))


def halves(real: np.ndarray, axes: np.ndarray) -> float:
    """What the distance is between images of one kind, so many of them: the least that is to be expected."""
    mixed = real[np.random.default_rng(0).permutation(len(real))]
    return frechet.distance(components.gaussian(mixed[::2], axes), components.gaussian(mixed[1::2], axes))


def real_images(config: DataConfig) -> np.ndarray:
    """At most SAMPLES of these, chosen at random."""
    source = data.load(config.name, **config.arguments())
    chosen = np.random.default_rng(0).permutation(len(source))[:SAMPLES]
    return source.images(chosen)
