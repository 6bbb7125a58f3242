"""The recorded losses and bounds of OpenAI's code, value and gradient, for its affine networks and mixtures."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import objectives, schedules
from ddpm_jax.evaluate import vlb_terms
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Schedule
from ddpm_jax.tools.parity import loops
from ddpm_jax.tools.parity.results import Result, relative
from ddpm_jax.tools.parity.tables import load

MEANS: dict[str, Any] = {"EPSILON": "eps", "START_X": "x_0", "PREVIOUS_X": "x_prev"}
FIXED, LEARNED = ("FIXED_SMALL", "FIXED_LARGE"), ("LEARNED", "LEARNED_RANGE")
LOSSES = tuple(f"openai/training_losses_{name}" for name in ("linear1000", "cosine200_rescaled", "spaced_linear25"))
TERMS = tuple(f"openai/vb_terms_{name}" for name in ("linear1000", "cosine200_rescaled"))
PRIORS = tuple(f"openai/forward_{name}" for name in ("linear1000", "cosine200_rescaled"))
BOUNDS = tuple(
    f"openai/bpd_{name}"
    for name in ("cosine25_large_noclip", "linear100full_small", "linear20_range", "linear30_x0_learned_rescaled")
)
FILES = (*LOSSES, *TERMS, *PRIORS, *BOUNDS)
Arrays = Mapping[str, np.ndarray]
Line = Callable[[str, str, Callable[[Any], float]], Result]  # losses.line
# (ours, variances, OpenAI's loss types it is compared with)
OBJECTIVES = (
    ("simple", FIXED, ("MSE", "RESCALED_MSE")),
    ("hybrid", LEARNED, ("RESCALED_MSE", "MSE")),
    ("vlb", (*FIXED, *LEARNED), ("KL", "RESCALED_KL")),
)


class Batch(NamedTuple):
    """What every network of a recording saw."""

    schedule: Schedule
    x_0: jax.Array
    t: jax.Array
    eps: jax.Array
    affine: Callable[[Any], ModelFn]


def compare(golden: Path, line: Line, only: tuple[str, ...] = FILES) -> Iterator[Result]:
    """Training losses, single terms, priors and whole bounds."""
    readers = ((LOSSES, _losses), (TERMS, _terms), (PRIORS, _prior), (BOUNDS, _whole))
    for names, read in readers:
        for name in names:
            if name in only:
                yield from read(golden, name, line)


def nhwc(array: np.ndarray) -> jax.Array:
    """[B, C, H, W] as float64 [B, H, W, C]."""
    return jnp.asarray(array.transpose(0, 2, 3, 1), jnp.float64)


def _batch(arrays: Arrays, meta: Any) -> Batch:
    schedule = loops.OPENAI_SCHEDULES[meta["schedule"]](meta["T"])
    if "timestep_map" in arrays:
        schedule = schedules.respace(schedule, arrays["timestep_map"])
    scale = (1000 / meta["T"] if meta["rescale_timesteps"] else 1) / 1000

    def affine(params: Any) -> ModelFn:
        def model_fn(x: jax.Array, t: jax.Array) -> jax.Array:
            row = lambda name: params[name].reshape(1, 1, 1, -1)
            time = t.astype(x.dtype).reshape(-1, 1, 1, 1) * scale
            return jnp.einsum("oc,nhwc->nhwo", params["M"], x) + time * row("u") + row("b")

        return model_fn

    t = jnp.asarray(arrays["t"], jnp.int32)
    return Batch(schedule, nhwc(arrays["x_start"]), t, nhwc(arrays["noise"]), affine)


def _parameters(arrays: Arrays, key: str) -> dict[str, jax.Array]:
    channels = arrays["x_start"].shape[1] * (2 if key.endswith(LEARNED) else 1)
    return {name: jnp.asarray(arrays[f"{key}.{name}"][:channels], jnp.float64) for name in "Mub"}


def _flat(parts: Mapping[str, Any]) -> np.ndarray:
    """One gradient, of all parameters: that of one of them may be a small difference of large terms."""
    return np.concatenate([np.asarray(parts[name], np.float64).ravel() for name in "Mub"])


def _losses(golden: Path, name: str, line: Line) -> Iterator[Result]:
    """simple, hybrid and vlb of all networks of a recording beside all loss types."""
    arrays, meta = load(golden, name)
    batch = _batch(arrays, meta)
    for ours, variances, types in OBJECTIVES:
        keys = [f"{mean}.{variance}" for mean in MEANS for variance in variances]
        runs = {key: _run(ours, batch, key, _parameters(arrays, key)) for key in keys}
        for theirs in types:
            item = f"{ours}, {{}} of {len(keys)} networks, T = {batch.schedule.num_timesteps}"
            for index, what in enumerate(("losses", "gradients")):

                def difference(form: Any, index: int = index, theirs: str = theirs, runs: Any = runs) -> float:
                    errors = []
                    for key, run in runs.items():
                        expected = arrays[f"{key}.{theirs}.loss"]
                        if index:
                            gradients = {part: arrays[f"{key}.{theirs}.grad_{part}"] for part in "Mub"}
                            size = len(arrays[f"{key}.M"]) if key.endswith(LEARNED) else batch.x_0.shape[-1]
                            expected = _flat({part: array[:size] for part, array in gradients.items()})
                        errors.append(relative(run(form)[index], expected))
                    return max(errors)

                against = f"{meta['upstream'][0]['repo']}, {theirs}: recorded {name.split('/')[1]}"
                yield line(item.format(what), against, difference)


def _run(ours: str, batch: Batch, key: str, params: Any) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
    """form -> (losses [B], the gradient of their mean)."""
    mean, variance = key.split(".")
    given: Any = (batch.schedule, batch.x_0, batch.t, batch.eps)
    options: Any = {"prediction": MEANS[mean], "variance": variance.lower()}
    num_timesteps, size = batch.schedule.num_timesteps, batch.x_0[0].size

    def losses(params: Any, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        chosen = options | ({"vlb_weight": weight} if ours == "hybrid" else {})
        found = getattr(objectives, ours)(batch.affine(params), *given, **chosen)
        return found.mean(), found

    compiled = jax.jit(jax.grad(losses, has_aux=True))
    cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def run(form: Any) -> tuple[np.ndarray, np.ndarray]:
        at = form.vlb_weight if ours == "hybrid" else ""
        if at not in cache:
            slopes, found = compiled(params, None if at in ("", "T / 1000") else jnp.float64(at))
            cache[at] = np.asarray(found), _flat(slopes)
        if ours == "vlb":
            return form.bound(cache[at][0], num_timesteps), form.bound(cache[at][1], num_timesteps)
        return form.reduced(cache[at][0], size), form.reduced(cache[at][1], size)

    return run


def _terms(golden: Path, name: str, line: Line) -> Iterator[Result]:
    """vlb_term of all networks, clipped and not."""
    arrays, meta = load(golden, name)
    batch, x_t = _batch(arrays, meta), nhwc(arrays["x_t"])
    found = {}
    for key in (f"{mean}.{variance}" for mean in MEANS for variance in (*FIXED, *LEARNED)):
        mean, variance = key.split(".")
        output = batch.affine(_parameters(arrays, key))(x_t, batch.schedule.timesteps[batch.t])
        for clip in (None, 1.0):
            options: Any = {"prediction": MEANS[mean], "variance": variance.lower(), "clip": clip}
            term = objectives.vlb_term(batch.schedule, batch.x_0, x_t, batch.t, output, **options)
            found[f"{key}.clip{int(clip is not None)}.output"] = np.asarray(term.bits_per_dim)
    num_timesteps = batch.schedule.num_timesteps
    difference = lambda form: max(relative(form.bound(ours, num_timesteps), arrays[key]) for key, ours in found.items())
    item = f"vlb_term, {len(found) // 2} networks, clipped and not, T = {num_timesteps}"
    yield line(item, f"{meta['upstream'][0]['repo']}: recorded {name.split('/')[1]}", difference)


def _prior(golden: Path, name: str, line: Line) -> Iterator[Result]:
    arrays, meta = load(golden, name)
    schedule = loops.OPENAI_SCHEDULES[meta["schedule"]](meta["T"])
    found = np.asarray(objectives.prior_bits_per_dim(schedule, nhwc(arrays["x_start"])))
    against = f"{meta['upstream'][0]['repo']}: recorded {name.split('/')[1]}"
    difference = lambda form: relative(form.bound(found, schedule.num_timesteps), arrays["prior_bpd"])
    yield line(f"prior_bits_per_dim, T = {schedule.num_timesteps}", against, difference)


def _whole(golden: Path, name: str, line: Line) -> Iterator[Result]:
    """The whole bound of every image, and every term of it."""
    arrays, meta = load(golden, name)
    schedule = loops.OPENAI_SCHEDULES[meta["schedule"]](meta["T"])
    schedule = schedules.respace(schedule, grids.section_timesteps(meta["T"], meta["section_counts"]))
    learned = meta["model_var_type"] in LEARNED
    answer = loops.openai_answer(arrays, meta)
    channels = arrays["x_start"].shape[-1] * (2 if learned else 1)

    def model_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        # As recorded, the network sees and says float32 numbers; only its thread's own settings hold in a callback.
        like = jax.ShapeDtypeStruct((*x.shape[:-1], channels), jnp.float32)
        told = lambda x, t: answer(np.asarray(x, np.float64), float(t[0])).astype(np.float32)
        return jax.pure_callback(told, like, x.astype(jnp.float32), t).astype(x.dtype)

    options: Any = {"prediction": MEANS[meta["model_mean_type"]], "variance": meta["model_var_type"].lower()}
    terms = vlb_terms(
        model_fn, schedule, jnp.asarray(arrays["x_start"], jnp.float64),
        noise=jnp.asarray(arrays["noise"][::-1], jnp.float64), clip=1.0 if meta["clip_denoised"] else None, **options,
    )  # fmt: skip
    against = f"{meta['upstream'][0]['repo']}, calc_bpd_loop: recorded {name.split('/')[1]}"
    for what, ours, theirs in (
        ("the bound", terms.total_bits_per_dim, "total_bpd"),
        ("every term", terms.bits_per_dim[:, ::-1], "vb"),
    ):
        found = np.asarray(ours)
        yield line(
            f"vlb_terms, {what}, {schedule.num_timesteps} steps",
            against,
            lambda form, found=found, theirs=theirs: relative(form.bound(found, 1), arrays[theirs]),
        )
