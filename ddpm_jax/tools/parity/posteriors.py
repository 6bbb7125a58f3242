"""One step of the forward and the reverse process beside what OpenAI's code was recorded to say of it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import process
from ddpm_jax.tools.parity.bounds import FIXED, LEARNED, MEANS, PRIORS, nhwc
from ddpm_jax.tools.parity.loops import OPENAI_SCHEDULES
from ddpm_jax.tools.parity.results import Result, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.samplers import EPSILON
from ddpm_jax.tools.parity.tables import PROCESSES, TOLERANCE, load

FORWARD = PRIORS
REVERSE = tuple(f"openai/p_mean_variance_{name}" for name in ("linear1000", "cosine200_rescaled"))
ELSEWHERE = {
    "process.target": "nothing recorded; `simple` of every prediction in losses; definitions in tests/test_process.py",
    "process.p_step": "no single step recorded; whole loops in samplers; definitions in tests/test_process.py",
}


def compare(golden: Path | None) -> Iterator[Result]:
    """q_sample, q_mean_variance, q_posterior, predict and p_mean_variance."""
    for names, read in ((FORWARD, _forward), (REVERSE, _reverse)):
        for name in names:
            if golden is None:
                yield not_compared(PROCESSES, f"recorded {name}", "", "recorded in PyTorch: needs --golden")
            else:
                with jax.enable_x64(True):
                    yield from read(golden, name)
    for name, reason in ELSEWHERE.items():
        yield not_compared(PROCESSES, name, "", reason)


def _line(item: str, name: str, meta: Any, pairs: list[tuple[Any, np.ndarray]]) -> Result:
    errors = [relative(np.broadcast_to(ours, theirs.shape), theirs) for ours, theirs in pairs]
    found = without_steps(max(errors), TOLERANCE)
    against = f"{meta['upstream'][0]['repo']}: recorded {name.split('/')[1]}"
    return compared(PROCESSES, f"{item}, T = {meta['T']}", against, found, TOLERANCE)


def _forward(golden: Path, name: str) -> Iterator[Result]:
    arrays, meta = load(golden, name)
    schedule, t = OPENAI_SCHEDULES[meta["schedule"]](meta["T"]), jnp.asarray(arrays["t"], jnp.int32)
    x_0, eps, x_t = (nhwc(arrays[key]) for key in ("x_start", "noise", "x_t"))
    theirs = lambda key: np.asarray(nhwc(arrays[key]))
    yield _line("q_sample", name, meta, [(process.q_sample(schedule, x_0, t, eps), theirs("x_t"))])
    marginal = process.q_mean_variance(schedule, x_0, t)
    pairs = [(part, theirs(f"q_{part_name}")) for part_name, part in marginal._asdict().items()]
    yield _line("q_mean_variance: mean, variance, log_variance", name, meta, pairs)
    found = process.q_posterior(schedule, x_0, x_t, t)
    pairs = [
        (found.mean, theirs("posterior_mean")),
        (found.variance, theirs("posterior_variance")),
        (found.log_variance, theirs("posterior_log_variance_clipped")),
    ]
    yield _line("q_posterior: mean, variance, log_variance", name, meta, pairs)

    def predicted(x_t: jax.Array) -> list[tuple[Any, np.ndarray]]:
        return [
            (process.predict(schedule, x_t, t, eps, prediction="eps").x_0, theirs("xstart_from_eps")),
            (process.predict(schedule, x_t, t, x_0, prediction="x_0").eps, theirs("eps_from_xstart")),
        ]

    result = _line("predict: x_0 from eps, eps from x_0", name, meta, predicted(x_t))
    # x_0 from eps divides by alpha, eps from x_0 by sigma: what float32 took from x_t is that much larger.
    rounded = x_t * (1 + EPSILON * np.random.default_rng(0).standard_normal(x_t.shape))
    pairs = zip(predicted(rounded), predicted(x_t), strict=True)
    moved = max(relative(np.asarray(again), np.asarray(before)) for (again, _), (before, _) in pairs)
    if result.verdict == "different" and result.difference is not None and result.difference <= 10 * moved:
        note = f"rounding: ours moves by {moved:.1e} when x_t is rounded once more"
        result = dataclasses.replace(result, verdict="explained", note=note)
    yield result


def _reverse(golden: Path, name: str) -> Iterator[Result]:
    arrays, meta = load(golden, name)
    schedule, t = OPENAI_SCHEDULES[meta["schedule"]](meta["T"]), jnp.asarray(arrays["t"], jnp.int32)
    pairs = []
    keys = [f"{mean}.{variance}" for mean in MEANS for variance in (*FIXED, *LEARNED)]
    for key in keys:
        mean, variance = key.split(".")
        for clip in (None, 1.0):
            options: Any = {"prediction": MEANS[mean], "variance": variance.lower(), "clip": clip}
            output = nhwc(arrays[f"{key}.model_output"])
            found = process.p_mean_variance(schedule, nhwc(arrays["x"]), t, output, **options)
            which = f"{key}.clip{int(clip is not None)}"
            theirs = [np.asarray(nhwc(arrays[f"{which}.{part}"])) for part in ("mean", "variance", "log_variance")]
            pairs += zip((found.mean, found.variance, found.log_variance), theirs, strict=True)
    item = f"p_mean_variance: mean, variance, log_variance, {len(keys)} networks, clipped and not"
    yield _line(item, name, meta, pairs)
