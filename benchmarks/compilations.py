"""How often programs are compiled for a list of samplers and numbers of steps, and how long the list takes."""

import contextlib
import importlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import monitoring

from ddpm_jax import keys, samplers, schedules
from ddpm_jax.models import bind
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.tools.bench import theirs, torch_forms
from ddpm_jax.tools.bench.blocks import Block, Facts, Missing
from ddpm_jax.tools.bench.networks import parameters
from ddpm_jax.tools.bench.settings import Say, Settings

SAMPLERS, STEPS = ("ddim", "deis", "dpm_solver_pp_2m", "unipc", "heun"), (5, 6, 8, 10)
PAIRS = tuple(itertools.product(SAMPLERS, STEPS))
EVENT = "/jax/core/compile/backend_compile_duration"
RUNNER, JITTED, NETWORK = (
    "samplers.Runner",
    "jax.jit of samplers.sample",
    "torch.compile of the network, loop in Python",
)


@contextlib.contextmanager
def counting() -> Iterator[list[float]]:
    """The seconds of every program that XLA compiles meanwhile."""
    found: list[float] = []
    active = [True]

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if active[0] and event == EVENT:
            found.append(duration_secs)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        active[0] = False  # the public interface has no way to unregister one listener


def measure(settings: Settings, say: Say) -> list[Block]:
    """Ours in one program, ours with a program each, PyTorch's compiled network in a loop over the same tables."""
    params, shape = parameters(settings.ours), (settings.batch, *settings.ours.image_shape)
    schedule = schedules.linear(1000)
    tables = [make_table(name, schedule, num_steps) for name, num_steps in PAIRS]
    x_T = np.random.default_rng(1).standard_normal(shape, np.float32)
    on_device = jax.device_put(params)
    make_denoise = lambda params: samplers.denoiser(bind(settings.ours.model, params))
    runner = samplers.Runner(make_denoise, shape, max(table.num_calls for table in tables))
    key = keys.make(0)
    jax.block_until_ready((on_device, key))

    def jitted(table: samplers.Table) -> Any:
        draw = lambda params, key: samplers.sample(make_denoise(params), table, key, shape)
        return jax.jit(draw)(on_device, key)

    contestants: dict[str, Callable[[samplers.Table], Any]] = {
        RUNNER: lambda table: runner(table, key, on_device),
        JITTED: jitted,
    }
    rows, missing = [], {}
    for name, run in contestants.items():
        if settings.asked_for(name):
            say(f"compilations: {len(PAIRS)} pairs with {name}")
            with counting() as compiled:
                start = time.perf_counter()
                for table in tables:
                    jax.block_until_ready(run(table))
                rows.append([name, len(compiled), f"{time.perf_counter() - start:.1f}", f"{sum(compiled):.1f}"])
        else:
            missing[name] = settings.not_asked
    found = in_pytorch(settings, params, tables, x_T, say) if settings.asked_for(NETWORK) else settings.not_asked
    if isinstance(found, str):
        missing[NETWORK] = found
    else:
        rows.append(found)
    title = f"{len(PAIRS)} pairs, {settings.label}: {', '.join(SAMPLERS)} with {', '.join(map(str, STEPS))} steps"
    header = ["", "compilations", "seconds for the list", "of these compiling"]
    return [Facts(title, header, rows, "One pass over the list each, in a process that had compiled none of it."),
            Missing("Not measured", missing)]  # fmt: skip


def in_pytorch(
    settings: Settings, params: Any, tables: list[samplers.Table], x_T: np.ndarray, say: Say
) -> list[Any] | str:
    """The same row for PyTorch, or why there is none: graphs that its compiler made, as it counts them."""
    there = theirs.load(settings.dtype)
    if isinstance(there, str):
        return there
    torch, (network, _) = there.torch, theirs.network(there, settings.ours, params)
    counters = importlib.import_module("torch._dynamo.utils").counters
    counters.clear()
    compiled = torch.compile(network.to(there.dtype))
    say(f"compilations: {len(PAIRS)} pairs with {NETWORK}")
    start = time.perf_counter()
    try:
        for table in tables:
            torch_forms.sample(torch, compiled, theirs.rows(table), there.images(float(table.init) * x_T))
        if there.device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError as error:
        return " ".join(str(error).split())[:300]
    return [NETWORK, counters["stats"]["unique_graphs"], f"{time.perf_counter() - start:.1f}", "not counted"]
