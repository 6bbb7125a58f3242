"""Noise schedules and the forward process beside those of diffusers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax import process, schedules
from ddpm_jax.samplers.configs import CLASSES, float32
from ddpm_jax.samplers.configs.common import DEFAULTS
from ddpm_jax.schedules import Schedule
from ddpm_jax.special import edm
from ddpm_jax.tools.parity.results import Difference, Result, along, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.theirs import Libraries, nchw, nhwc

SCHEDULES, PROCESSES = "schedules", "processes"
TOLERANCE = 1e-5  # of float32 tables
# beta_schedule of diffusers: ours.
BETAS: dict[str, Callable[[int], Schedule]] = {
    "linear": schedules.linear,
    "scaled_linear": schedules.quad,
    "squaredcos_cap_v2": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "laplace": schedules.laplace,
}
LENGTHS = (1000, 100)
IN_FLOAT32 = "S5: float32 near 1; computed in float32 from the same betas, ours has the same bits"
NOT_IN_DIFFUSERS = ("linear_rescaled", "const", "jsd", "warmup", "sqrt", "sigmoid_cumprod")


def compare_schedules(libraries: Libraries) -> Iterator[Result]:
    """A line for every schedule and length, and one for what is lost in float32."""
    for name, make in BETAS.items():
        for length in LENGTHS:
            yield from _schedule(libraries, name, make(length), {})
    for name in ("linear", "scaled_linear"):
        ours = schedules.zero_terminal_snr(BETAS[name](1000))
        yield from _schedule(libraries, name, ours, {"rescale_betas_zero_snr": True})
    yield _exp(libraries)
    for name in NOT_IN_DIFFUSERS:
        yield not_compared(SCHEDULES, name, "", "no schedule of diffusers; against others in tests/test_schedules.py")


def _schedule(libraries: Libraries, name: str, ours: Schedule, settings: Mapping[str, Any]) -> Iterator[Result]:
    length = ours.num_timesteps
    config = {"num_train_timesteps": length, "beta_schedule": name, **settings}
    theirs = libraries.diffusers.DDPMScheduler(**config)
    item = f"{name}, T = {length}" + (", zero terminal SNR" if settings else "")
    against = f"DDPMScheduler(beta_schedule={name})"
    pairs = [
        (ours.betas_float64, theirs.betas.numpy()),
        (ours.alphas_cumprod_float64, theirs.alphas_cumprod.numpy()),
    ]
    found = Difference(max(relative(*pair) for pair in pairs), None)
    if found.largest > TOLERANCE:
        steps = [along(*map(list, pair), tolerance=TOLERANCE).first_step for pair in pairs]
        found = dataclasses.replace(found, first_step=min(step for step in steps if step is not None))
    yield compared(SCHEDULES, f"{item}: betas, alphas_cumprod", against, found, TOLERANCE)
    small = along(list(ours.one_minus_alphas_cumprod_float64), list(1 - pairs[1][1].astype(np.float64)), TOLERANCE)
    result = compared(SCHEDULES, f"{item}: 1 - alphas_cumprod, each entry", against, small, TOLERANCE)
    given = {**DEFAULTS, "num_train_timesteps": length, "trained_betas": pairs[0][1], "rescale_betas_zero_snr": False}
    if result.verdict == "different" and np.array_equal(float32.alphas_cumprod(given), pairs[1][1]):
        result = dataclasses.replace(result, verdict="explained", note=IN_FLOAT32)
    yield result


def _exp(libraries: Libraries) -> Result:
    theirs = libraries.diffusers.HeunDiscreteScheduler(beta_schedule="exp").alphas_cumprod.numpy()
    ours = float32.alphas_cumprod({**DEFAULTS, "beta_schedule": "exp"})
    found = without_steps(relative(ours, theirs), TOLERANCE)
    return compared(
        SCHEDULES, "exp, T = 1000: alphas_cumprod", "HeunDiscreteScheduler(beta_schedule=exp)", found, TOLERANCE
    )


# -------------------------------------------------------------------------------------------------------- processes

UNSCHEDULED = {
    "DDIMInverseScheduler": "the class has no add_noise",
    "RePaintScheduler": "add_noise of the class raises NotImplementedError",
    "DPMSolverMultistepInverseScheduler": "add_noise of the class is that of DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler": "the class needs torchsde",
    "IPNDMScheduler": "the class has no add_noise",
    "UnCLIPScheduler": "add_noise of the class is that of DDPMScheduler",
    "CMStochasticIterativeScheduler": "x_0 + sigma eps, and so begun in the middle in tests/tools/parity/test_start.py",
    "ScoreSdeVeScheduler": "x_0 + sigma eps at positions in a list",
}
IN_TESTS = "no function of diffusers; against OpenAI's recorded ones in tests/test_process.py"
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


AT_POSITIONS = "with alphas_cumprod read at a timestep's position in the class's list, not at the timestep"


def compare_processes(libraries: Libraries) -> Iterator[Result]:
    """add_noise and get_velocity of every class, for three curves of betas."""
    for class_name in CLASSES:
        if class_name in UNSCHEDULED:
            yield not_compared(PROCESSES, f"q_sample beside {class_name}", "", UNSCHEDULED[class_name])
        elif class_name in EDM:
            yield _edm_process(libraries, class_name)
        else:
            for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
                yield from _process(libraries, class_name, name)
    yield not_compared(PROCESSES, "q_posterior, predict, p_mean_variance", "", IN_TESTS)


def _edm_process(libraries: Libraries, class_name: str) -> Result:
    """add_noise of a class whose timesteps are what an EDM network is told."""
    scheduler = getattr(libraries.diffusers, class_name)()
    scheduler.set_timesteps(10)
    x_0, eps = np.random.default_rng(0).standard_normal((2, 10, 4, 4, 3)).astype(np.float32)
    t = scheduler.timesteps
    theirs = nhwc(scheduler.add_noise(nchw(libraries.torch, x_0), nchw(libraries.torch, eps), t))
    ours = edm.q_sample(jnp.asarray(x_0), edm.sigma_of(jnp.asarray(t.numpy(), jnp.float32)), jnp.asarray(eps))
    return _images("edm.q_sample, 10 timesteps", f"{class_name}.add_noise", np.asarray(ours), theirs)


def _process(libraries: Libraries, class_name: str, name: str) -> Iterator[Result]:
    ours = BETAS[name](1000)
    scheduler = getattr(libraries.diffusers, class_name)(
        beta_schedule=name, beta_start=1e-4, beta_end=0.02, num_train_timesteps=1000
    )
    scheduler.set_timesteps(10)
    # Before the last one: with a cosine schedule alpha is 5e-5 there, and x / alpha says nothing in float32.
    times = np.unique([int(t) for t in scheduler.timesteps if float(t).is_integer()])[:-1]
    x_0, eps = np.random.default_rng(0).standard_normal((2, len(times), 4, 4, 3)).astype(np.float32)
    t = jnp.asarray(times, jnp.int32)
    t_theirs = libraries.torch.from_numpy(times).to(scheduler.timesteps.dtype)
    images = nchw(libraries.torch, x_0), nchw(libraries.torch, eps), t_theirs
    velocity = lambda t: np.asarray(process.velocity(ours, x_0, eps, t))
    theirs = nhwc(scheduler.add_noise(*images))
    if float(scheduler.init_noise_sigma) != 1:  # these keep x / alpha
        theirs = theirs * ours.alphas_cumprod_float64[times].reshape(-1, 1, 1, 1) ** 0.5
    item = f"{{}}, {name}, {len(times)} timesteps"
    noised = np.asarray(process.q_sample(ours, x_0, t, eps))
    yield _images(item.format("q_sample"), f"{class_name}.add_noise", noised, theirs)
    if not hasattr(scheduler, "get_velocity"):
        return
    theirs = nhwc(scheduler.get_velocity(*images))
    result = _images(item.format("velocity"), f"{class_name}.get_velocity", velocity(t), theirs)
    if result.verdict == "different":
        positions = [scheduler.timesteps.tolist().index(time) for time in times]
        again = relative(velocity(jnp.asarray(positions, jnp.int32)), theirs)
        if again <= TOLERANCE:
            note = f"matches to {again:.1e} {AT_POSITIONS}"
            result = dataclasses.replace(result, verdict="explained", note=note)
    yield result


def _images(item: str, against: str, ours: np.ndarray, theirs: np.ndarray) -> Result:
    found = without_steps(relative(ours, theirs), TOLERANCE)
    return compared(PROCESSES, item, against, found, TOLERANCE)
