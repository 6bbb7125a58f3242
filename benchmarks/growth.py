"""How time and memory grow with the number of steps, the batch, the image size and the number of devices."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import keys, samplers, schedules
from ddpm_jax.models import bind
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.tools.bench.blocks import Block, Curves, Facts, Missing
from ddpm_jax.tools.bench.interleave import Job, spread
from ddpm_jax.tools.bench.networks import parameters
from ddpm_jax.tools.bench.settings import Say, Settings, compare

STEPS = (10, 30, 100, 300, 1000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES = (1, 2, 4)  # times the network's own
DEVICES = (1, 2, 4)


def measure(settings: Settings, say: Say) -> list[Block]:
    """What grows is one axis each; everything else is as the options say."""
    params = jax.device_put(parameters(settings.ours))
    found: list[Block] = []
    for axis in (steps, batches, sizes):
        say(f"growth: {axis.__name__}")
        found += axis(settings, params)
    say("growth: devices")
    return [*found, *devices(settings)]


def steps(settings: Settings, params: Any) -> list[Block]:
    """DDIM of 10 to 1000 steps, batch and network as asked for: a scan keeps one image whatever their number."""
    shape = (settings.batch, *settings.ours.image_shape)
    key, schedule = keys.make(0), schedules.linear(1000)
    programs = {}
    for n in STEPS:
        table = make_table("ddim", schedule, n)
        draw = lambda params, key, table=table: samplers.sample(
            samplers.denoiser(bind(settings.ours.model, params)), table, key, shape
        )
        programs[n] = jax.jit(draw).lower(params, key).compile()
    return curves(settings, "sampler's steps", programs, (params, key), lambda n: n, "network call")


def batches(settings: Settings, params: Any) -> list[Block]:
    """Forward calls of 1 to 64 images."""
    programs, arguments = {}, {}
    for n in BATCHES:
        arguments[n] = (params, jnp.zeros((n, *settings.ours.image_shape)), jnp.zeros(n))
        programs[n] = jax.jit(forward(settings)).lower(*arguments[n]).compile()
    return curves(settings, "batch", programs, arguments, lambda n: n, "image")


def sizes(settings: Settings, params: Any) -> list[Block]:
    """Forward calls on images of 1, 2 and 4 times the size: attention stays at the same levels."""
    height, width, channels = settings.ours.image_shape
    programs, arguments = {}, {}
    for factor in SIZES:
        shape = (settings.batch, factor * height, factor * width, channels)
        arguments[factor * height] = (params, jnp.zeros(shape), jnp.zeros(settings.batch))
        program = jax.jit(forward(settings, factor)).lower(*arguments[factor * height])
        programs[factor * height] = program.compile()
    return curves(settings, "image size", programs, arguments, lambda n: settings.batch * n**2, "pixel")


def forward(settings: Settings, factor: int = 1) -> Callable[..., jax.Array]:
    """The network, for images `factor` times as large."""
    model = settings.ours.model
    resolutions = tuple(factor * height for height in model.attention_resolutions or ())
    model = model.clone(attention_resolutions=resolutions)
    return lambda params, x, t: bind(model, params)(x, t)


def curves(
    settings: Settings,
    what: str,
    programs: Mapping[int, Any],
    arguments: Any,
    items: Callable[[int], int],
    unit: str,
) -> list[Block]:
    """Seconds per item and the compiler's temporaries, for each number of them."""
    given = lambda n: arguments[n] if isinstance(arguments, dict) else arguments
    jobs: dict[str, Job] = {
        str(n): lambda n=n, program=program: jax.block_until_ready(program(*given(n)))
        for n, program in programs.items()
    }
    comparison = compare(settings, f"{what}, {settings.label}", jobs, reference=next(iter(jobs)), unit="run")
    times = [
        [n, spread(comparison.seconds[str(n)]).median / items(n)] for n in programs if str(n) in comparison.seconds
    ]
    rows, memory = [], []
    for n, program in programs.items():
        used = program.memory_analysis()
        if used is not None:
            memory.append([n, used.temp_size_in_bytes / 2**20])
        rows.append([n, "unknown" if used is None else f"{used.temp_size_in_bytes / 2**20:.2f}"])
    found: list[Block] = [comparison, Curves(f"time against {what}", what, f"seconds per {unit}", {what: times}, "xy")]
    if memory:
        found.append(Curves(f"memory against {what}", what, "MiB of temporaries", {what: memory}, "xy"))
    return [*found, Facts(f"memory against {what}", [what, "MiB of temporaries"], rows)]


# ---------------------------------------------------------------------------------------------------------- devices


def devices(settings: Settings) -> list[Block]:
    """The training step on 1, 2 and 4 devices, a process each: on a CPU they are virtual and share its cores."""
    lines, missing, rows = [], {}, []
    real = len(jax.devices()) if jax.devices()[0].platform != "cpu" else None
    for n in DEVICES:
        name = f"{n} devices"
        if real is not None and n > real:
            missing[name] = f"this machine has {real}"
        elif settings.batch % n:
            missing[name] = f"a batch of {settings.batch} does not divide by {n}"
        else:
            seconds = in_a_process(settings, n)
            found = spread(seconds)
            lines.append([n, settings.batch / found.median])
            rows.append([n, f"{1e3 * found.median:.1f}", f"{1e3 * found.low:.1f} to {1e3 * found.high:.1f}"])
    title, note = f"training step against devices, {settings.label}", ""
    if real is None:
        note = "Virtual devices of one CPU: they share its cores, so this shows what sharing costs, not what it gains."
    return [
        Curves(title, "devices", "images/s", {"training step": lines}, note=note),
        Facts(title, ["devices", "ms", "interval"], rows, "Not interleaved: a process each."),
        *([Missing("Not measured", missing)] if missing else []),
    ]


def in_a_process(settings: Settings, n: int) -> list[float]:
    """Seconds of steps on n devices, in a process that has them.

    Raises:
      ChildProcessError: it failed; with its last words.
    """
    request = {"network": settings.network, "batch": settings.batch, "dtype": settings.dtype, "rounds": settings.rounds}
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={n}"}
    command = [sys.executable, "-m", "benchmarks.growth", json.dumps(request), str(n)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise ChildProcessError(f"{n} devices: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(request: str, n: str) -> None:
    """The process: seconds of steps as JSON."""
    from benchmarks import training
    from ddpm_jax.tools.bench.interleave import interleaved, warmed

    settings = Settings(**json.loads(request))
    shape = (settings.batch, *settings.ours.image_shape)
    batch = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    job = training.our_job(settings, parameters(settings.ours), batch, jax.devices()[: int(n)])
    running, missing = warmed({"step": job})
    if missing:
        raise ChildProcessError(missing["step"])
    sys.stdout.write(json.dumps(interleaved(running, settings.rounds)["step"]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
