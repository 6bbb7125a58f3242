"""A user's own network and scheduler beside diffusers', and beside the papers' conventions.

They are in a folder of diffusers, or are written as one: a run, the weights of another project.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import interop, opening
from ddpm_jax.host.storage import Say
from ddpm_jax.interop import hub
from ddpm_jax.interop.diffusers.load import PARTS, read_json
from ddpm_jax.runs import checkpoint
from ddpm_jax.samplers import grids
from ddpm_jax.samplers import sample as draw
from ddpm_jax.samplers.grids import dpm_grids, sigma_grids
from ddpm_jax.schedules import Schedule
from ddpm_jax.tools.parity import configs, networks, samplers, schedulers
from ddpm_jax.tools.parity.ours import Setup
from ddpm_jax.tools.parity.results import Result, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.search import explained
from ddpm_jax.tools.parity.theirs import Libraries, nchw, nhwc
from ddpm_jax.tools.parity.theirs import calls as their_calls
from ddpm_jax.trained import Trained

GROUP = "against"
NUM_STEPS = 5
TOLERANCE = 1e-4
# What the papers' sampler of a class is, on the spacing that the class has by default.
PAPERS: dict[str, tuple[str, Any]] = {
    "DDPMScheduler": ("ddpm_small", grids.leading),
    "DDIMScheduler": ("ddim", grids.leading),
    "PNDMScheduler": ("pndm", grids.leading),
    "EulerDiscreteScheduler": ("euler", sigma_grids.linspace),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", sigma_grids.linspace),
    "HeunDiscreteScheduler": ("heun", sigma_grids.linspace),
    "LMSDiscreteScheduler": ("lms", sigma_grids.linspace),
    "KDPM2DiscreteScheduler": ("dpm2", sigma_grids.linspace),
    "KDPM2AncestralDiscreteScheduler": ("dpm2_ancestral", sigma_grids.linspace),
    "DPMSolverMultistepScheduler": ("dpm_solver_pp_2m", dpm_grids.linspace),
    "DPMSolverSinglestepScheduler": ("dpm_solver_pp_2s", dpm_grids.linspace),
    "UniPCMultistepScheduler": ("unipc", dpm_grids.linspace),
    "DEISMultistepScheduler": ("deis", dpm_grids.linspace),
    "SASolverScheduler": ("sa_solver", dpm_grids.linspace),
}


def compare(libraries: Libraries, place: str | Path, say: Say, num_steps: int = NUM_STEPS) -> Iterator[Result]:
    """The network of a place, its scheduler, both together for a few steps, and what sets the scheduler apart.

    Raises:
      FileNotFoundError: nothing there, or a part that it must have.
      ValueError: a part that is not known here, or that diffusers cannot express.
    """
    with tempfile.TemporaryDirectory() as home:
        folder = _folder(place, say, Path(home) / "folder")
        loaded, net = interop.load(folder), _network(libraries, folder)
    yield compare_network(libraries, loaded, net)
    config = dict(loaded.scheduler_config or {})
    name = config.pop("_class_name")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    line = schedulers.compare_one(libraries, name, settings, num_steps)
    yield dataclasses.replace(line, group=GROUP, item=f"scheduler, exact network, {num_steps} steps", against=name)
    yield _papers(libraries, loaded, name, settings, num_steps)
    yield _together(libraries, loaded, net, name, settings, num_steps)


def _folder(place: str | Path, say: Say, written: Path) -> Path:
    """Where diffusers has it: there, in the cache of the hub, or as it is now written."""
    if str(place).startswith("hf:"):
        return hub.fetch(str(place).removeprefix("hf:"))
    if Path(place).is_dir() and checkpoint.find_run(Path(place)) is None:
        return Path(place)
    interop.save_diffusers(written, opening.open(place, say))
    return written


def _network(libraries: Libraries, folder: Path) -> Any:
    """The network of the folder, by its own class; in memory as a float32 one."""
    index = folder / "model_index.json"
    place = folder
    if index.is_file():
        parts = [part for part in PARTS["network"] if part in read_json(index)]
        place = folder / parts[0]
    class_name = read_json(place / "config.json")["_class_name"]
    return getattr(libraries.diffusers, class_name).from_pretrained(place, local_files_only=True).float().eval()


def _inputs(net: Any, batch: int) -> dict[str, np.ndarray]:
    """Labels or context, where the network has them."""
    return networks.conditioning("dit" if "Transformer" in type(net).__name__ else "", net, batch)


def _ours(loaded: Trained, given: Mapping[str, np.ndarray]) -> Any:
    kinds = {"y": jnp.int32, "context": jnp.float32}
    return loaded.model_fn(**{key: jnp.asarray(value, kinds[key]) for key, value in given.items()})


def compare_network(libraries: Libraries, loaded: Trained, net: Any) -> Result:
    """What was read of the folder beside the network itself; of a difference, the settings that would be right."""
    x = np.random.default_rng(0).standard_normal((2, *loaded.image_shape)).astype(np.float32)
    t, given = np.array([3.0, loaded.schedule.num_timesteps * 0.77 // 1], np.float32), _inputs(net, 2)
    with libraries.torch.no_grad():
        theirs = nhwc(networks.their_output(libraries, net, nchw(libraries.torch, x), t, given))

    def difference(loaded: Trained) -> float:
        with jax.default_matmul_precision("highest"):
            return relative(np.asarray(jax.jit(_ours(loaded, given))(jnp.asarray(x), jnp.asarray(t))), theirs)

    def changed(config: configs.Config) -> Trained:
        from_config, to_params, _ = networks.OURS[type(net).__name__]
        params = to_params(networks.weights(net), config)
        return dataclasses.replace(loaded, config=config, model=from_config(config), params=params)

    size = sum(parameter.numel() for parameter in net.parameters())
    found = without_steps(difference(loaded), TOLERANCE)
    result = compared(GROUP, "network, 2 images", f"{type(net).__name__}, {size:,} parameters", found, TOLERANCE)
    config = {**net.config, **loaded.config}  # with the defaults of what its file does not say
    return explained(result, config, configs.CONVENTIONS, lambda config: difference(changed(config)))


def papers_setup(name: str, schedule: Schedule, prediction: Any, num_steps: int) -> Setup:
    """The sampler of the papers that this class of diffusers is a form of: x_0 of pixels is clipped."""
    sampler, spread = PAPERS[name]
    clip = 1.0 if name in ("DDPMScheduler", "DDIMScheduler") else None
    return Setup(sampler, num_steps, spread=spread, schedule=schedule, prediction=prediction, clip=clip)


def _papers(libraries: Libraries, loaded: Trained, name: str, settings: Mapping[str, Any], num_steps: int) -> Result:
    if name not in PAPERS:
        return not_compared(GROUP, f"{name} and the papers", "", "no sampler of a paper that the class is a form of")
    scheduler = getattr(libraries.diffusers, name)(**settings)
    scheduler.set_timesteps(num_steps)
    setup = papers_setup(name, loaded.schedule, loaded.prediction, num_steps)
    item = f"{setup.sampler} as in its paper, {num_steps} steps"
    return samplers.against_scheduler(libraries, GROUP, item, name, setup, scheduler, largest=3)


def _together(
    libraries: Libraries, loaded: Trained, net: Any, name: str, settings: Mapping[str, Any], num_steps: int
) -> Result:
    """The folder's network and scheduler, as a pipeline runs them, in float32 on both sides."""
    x_T, noise = (each.astype(np.float32) for each in samplers.noise_of(4 * num_steps, shape=(2, *loaded.image_shape)))
    given, torch = _inputs(net, 2), libraries.torch
    scheduler = getattr(libraries.diffusers, name)(**settings)
    scheduler.set_timesteps(num_steps)
    channels = loaded.image_shape[-1]
    # Pipelines drop a learned variance that the scheduler does not know.
    keep = slice(None) if scheduler.config.get("variance_type") in ("learned", "learned_range") else slice(channels)

    def answer(x: np.ndarray, time: float) -> np.ndarray:
        with torch.no_grad():
            output = networks.their_output(libraries, net, nchw(torch, x), np.full(2, time, np.float32), given)
        return nhwc(output)[..., keep]

    theirs = their_calls(torch, scheduler, answer, x_T, noise)
    table, denoiser = loaded.default_sampler(num_steps)
    count = table.num_calls
    run = jax.jit(lambda x_T, z: draw(denoiser(_ours(loaded, given)), table, None, x_T.shape, x_T=x_T, noise=z))
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(run(x_T, noise[:count]))
    against = f"{type(net).__name__} with {name}"
    found = without_steps(relative(ours, theirs.xs[-1]), TOLERANCE)
    return compared(GROUP, f"network and scheduler, 2 images after {num_steps} steps", against, found, TOLERANCE)
