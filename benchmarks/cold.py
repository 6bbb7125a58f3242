"""From the start of a process to the first image, in fresh processes: imports, weights, compilation, sampling."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from ddpm_jax.interop import diffusers as names
from ddpm_jax.interop.diffusers import to_diffusers
from ddpm_jax.tools.bench import theirs
from ddpm_jax.tools.bench.blocks import Block, Comparison
from ddpm_jax.tools.bench.interleave import interleaved
from ddpm_jax.tools.bench.networks import parameters
from ddpm_jax.tools.bench.sampling import REFERENCE, ddim
from ddpm_jax.tools.bench.settings import Say, Settings

CACHED = "ddpm_jax, compiled before (persistent cache)"
CONTESTANTS = {
    REFERENCE: "jax",
    CACHED: "jax cached",
    "PyTorch eager": "torch eager",
    "torch.compile": "torch compile",
    "torch.compile, compiled before": "torch compile cached",
}
MOST_ROUNDS = 3  # a round takes minutes


def measure(settings: Settings, say: Say) -> list[Block]:
    """A process each, `cold_process`, that reads the weights from a file and says when it has images."""
    there = theirs.load(settings.dtype)
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ddpm_jax_bench_") as directory:
        write_request(settings, Path(directory), torch=not isinstance(there, str))
        jobs = {}
        for name, form in CONTESTANTS.items():
            if not settings.asked_for(name):
                missing[name] = settings.not_asked
                continue
            if isinstance(there, str) and form.startswith("torch"):
                missing[name] = there
                continue
            job = lambda form=form: first_image(form, Path(directory))
            say(f"cold start: {name}, the first of {min(settings.rounds, MOST_ROUNDS) + 1} times")
            try:
                job()  # files come into the system's cache, and compiled programs into theirs
            except ChildProcessError as error:
                missing[name] = str(error)
            else:
                jobs[name] = job
        seconds = interleaved(jobs, min(settings.rounds, MOST_ROUNDS), seconds=settings.seconds)
    title = (
        f"a new process to the first {settings.batch} images, {settings.num_steps} steps of DDIM, {settings.network}"
    )
    note = "Files were in the system's cache. Nothing was compiled before, unless the name says so."
    return [Comparison(title, REFERENCE, seconds, settings.batch, "image", missing=missing, note=note)]


def write_request(settings: Settings, folder: Path, *, torch: bool) -> None:
    """What the processes need: weights for both, the steps, the sizes."""
    ours, params = settings.ours, parameters(settings.ours)
    config = to_diffusers.unet_to_config(ours.model, ours.image_shape)
    table = ddim(settings.num_steps).table
    request = {
        "network": settings.network,
        "dtype": settings.dtype,
        "shape": [settings.batch, *ours.image_shape],
        "num_steps": settings.num_steps,
        "config": config,
        "rows": theirs.rows(table),
        "device": "cuda" if jax.devices()[0].platform == "gpu" else "cpu",
    }
    (folder / "request.json").write_text(json.dumps(request))
    flat: Any = traverse_util.flatten_dict(params, sep="/")
    np.savez(folder / "ours.npz", **flat)
    if torch:
        weights: Any = names.params_to_unet2d(params, config)
        np.savez(folder / "theirs.npz", **weights)


def first_image(form: str, folder: Path) -> None:
    """Returns when the process has images; it is then ended.

    Raises:
      ChildProcessError: it ended without; with its last words.
    """
    command = [sys.executable, "-m", "benchmarks.cold_process", form, str(folder)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        done = any(line.strip() == "images" for line in process.stdout)
        process.kill()
        if not done:
            errors.seek(0)
            said: Any = errors.read().strip().splitlines() or ["nothing said"]
            raise ChildProcessError(f"{form}: {said[-1]}")
