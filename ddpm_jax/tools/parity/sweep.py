"""Random configurations of all scheduler classes: diffusers' own loop, in float32 and in float64, beside our tables."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from math import inf
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax import samplers
from ddpm_jax.samplers import from_diffusers_config
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.tools.parity import double, mixture, ours, schedulers
from ddpm_jax.tools.parity.draws import Case, draw
from ddpm_jax.tools.parity.mixture import Answer
from ddpm_jax.tools.parity.results import Result, along
from ddpm_jax.tools.parity.samplers import TOLERANCE, noise_of
from ddpm_jax.tools.parity.theirs import Calls, Libraries, nchw
from ddpm_jax.tools.parity.theirs import calls as their_calls

IN_FLOAT64 = 1e-6
NOT_FINITE = "is not finite"

# What is refused though diffusers goes on: our message, and why.
REFUSED = {
    "says nothing about the step at time": "diffusers divides by 0 and clips infinities, whose signs are rounding",
    "is the root of a logarithm": "NaN wherever noise is added, which at t = 0 is nowhere",
    "has no inverse": "NaN wherever noise would grow, which in a step of length 0 it does not",
    "the last step has length 0": "0 / 0, unless a power's rounding makes that 1e-7 / 1e-7",
    "end at timestep -1": "no network knows timestep -1, and alphas_cumprod[-1] is that of the noisiest",
}


class Run(NamedTuple):
    """What came of a case: where the network was called, or why that ended."""

    calls: Calls | None
    failure: str = ""


def run(calls: Callable[[], Calls]) -> Run:
    """calls(), or how it fails; numbers that are not finite are a failure."""
    try:
        found = calls()
    except Exception as error:  # whatever diffusers raises is its refusal
        return Run(None, " ".join(f"{type(error).__name__}: {error}".split()))
    wrong = [k for k, x in enumerate(found.xs) if not np.isfinite(x).all()]
    return Run(None, f"{NOT_FINITE} from call {wrong[0]} on") if wrong else Run(found)


def answer_of(scheduler: Any, case: Case) -> Answer:
    """The exact network in the form that the class asks for; of the parts that a learned variance adds, any numbers."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    answer = schedulers.answer_of(scheduler, case.name)
    variance = scheduler.config.get("variance_type")
    if variance == "learned" and case.name.startswith("DDPM"):
        return mixture.with_variance(answer, lambda value: np.exp(2 * value - 6))
    if variance in ("learned", "learned_range") and (kind == "epsilon" or case.name.startswith("DDPM")):
        return mixture.with_variance(answer, lambda value: value)
    return answer


def masked() -> tuple[np.ndarray, np.ndarray]:
    """What RePaint knows: an image, and where (1) it is known."""
    mask = np.zeros(mixture.SHAPE)
    mask[:, :2] = 1
    return noise_of(1, seed=1)[0], mask


class Sides:
    """A case, and the noise that both sides get."""

    def __init__(self, libraries: Libraries, case: Case):
        self.torch, self.case = libraries.torch, case
        self.scheduler_class = getattr(libraries.diffusers, case.name)
        self.x_T, self.noise = noise_of(4 * (case.num_steps or 10) + 80)
        self.begun = {"x_0": masked()[0] / 2} if case.start else {}

    def scheduler(self) -> Any:
        """Theirs, as a pipeline makes it of a file."""
        return self.scheduler_class.from_config(self.case.settings)

    @functools.cached_property
    def answer(self) -> Answer:
        """The network that both sides call, of their float32 table; times are told in float32."""
        answer = answer_of(self.scheduler(), self.case)
        return lambda x, time: answer(x, float(np.float32(time)))

    def set_timesteps(self, scheduler: Any) -> Any:
        """The scheduler with the timesteps of the case."""
        steps = {} if self.case.num_steps is None else {"num_inference_steps": self.case.num_steps}
        scheduler.set_timesteps(**steps, **self.case.set_options)
        scheduler.timesteps = self.torch.as_tensor(scheduler.timesteps)
        return scheduler

    def loop(self, scheduler: Any, dtype: Any, **step_options: Any) -> Calls:
        """Their loop, as a pipeline runs it."""
        options = {**self.case.step_options, **step_options}
        if self.case.name == "RePaintScheduler":
            original, mask = (nchw(self.torch, each, dtype) for each in masked())
            options |= {"original_image": original, "mask": mask}
        begun = {**self.begun, "start": self.case.start} if self.begun else {}
        return their_calls(self.torch, scheduler, self.answer, self.x_T, self.noise, options, dtype, **begun)

    def theirs(self) -> Calls:
        """In float32."""
        return self.loop(self.set_timesteps(self.scheduler()), np.float32)

    def theirs_in_float64(self, fractions: bool) -> Calls:
        """In float64 from their own float32 tables; fractions: told the fractional times of float32.

        With eta = 1 the weight of eps may be the root of what cancels, and no number where that is below 0: just short
        of 1 it is one.
        """
        narrow, _ = self.set_timesteps(self.scheduler()), self.answer
        short = {"eta": 1 - 1e-13} if self.case.step_options.get("eta") == 1 else {}
        with double.widened(self.torch, self.scheduler_class):
            wide = self.scheduler()
            double.refine(self.torch, wide, narrow)
            double.share_timesteps(self.torch, self.set_timesteps(wide), narrow, fractions)
            return self.loop(wide, np.float64, **short)

    def preset(self) -> Preset:
        """Ours.

        Raises:
          ValueError: it is refused.
        """
        config = {"_class_name": self.case.name, **self.case.settings}
        options = {**self.case.set_options, **self.case.step_options}
        options |= {"start": self.case.start} if self.case.start else {}
        return from_diffusers_config(config, self.case.num_steps, **options)

    def ours(self, preset: Preset) -> Calls:
        """The rows of the preset, in float64."""
        wrap = lambda denoise: denoise
        if self.case.name == "RePaintScheduler":
            wrap = lambda denoise: samplers.known(denoise, *map(jnp.asarray, masked()))
        return ours.calls(preset, self.answer, self.x_T, self.noise, wrap, **self.begun)


def apart(found: Calls, theirs: Calls, tolerance: float) -> tuple[float, int | None]:
    """The largest relative difference and the first step beyond; infinite where the network is told another time."""
    difference = along(found.xs, theirs.xs, tolerance)
    if len(found.times) != len(theirs.times):
        return inf, difference.first_step
    wrong = np.abs(np.subtract(found.times, theirs.times)) > 1e-3
    return (inf, int(np.argmax(wrong))) if wrong.any() else (difference.largest, difference.first_step)


def judge(libraries: Libraries, item: str, case: Case) -> Result:
    """One case on both sides.

    "same": within TOLERANCE of diffusers in float32, or refused by both. "explained": refused here for a reason in
    REFUSED, or as diffusers is with the square roots of another processor, or in float64: to IN_FLOAT64 or, where
    rounding shows even there, a thousand times closer than in float32. "different": everything else.
    """
    sides = Sides(libraries, case)
    result = Result(schedulers.GROUP, item, str(case), "same", tolerance=TOLERANCE)
    different = lambda note: dataclasses.replace(result, verdict="different", note=note)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        theirs = run(sides.theirs)
        try:
            preset = sides.preset()
        except ValueError as error:
            return _refused(result, str(error), theirs)
        if theirs.calls is None and not theirs.failure.startswith(NOT_FINITE):
            return different(f"only diffusers fails: {theirs.failure}")
        mine = run(lambda: sides.ours(preset))
        if mine.calls is None:
            return different(f"ours: {mine.failure}")
        if theirs.calls is not None:
            difference, first = apart(mine.calls, theirs.calls, TOLERANCE)
            result = dataclasses.replace(result, difference=difference, first_step=first)
            if difference <= TOLERANCE:
                return result
        if not double.same_roots(sides.torch):
            with double.roots_replaced(sides.torch):
                other = run(sides.theirs)
            if other.calls is not None and apart(mine.calls, other.calls, TOLERANCE)[0] <= TOLERANCE:
                return dataclasses.replace(result, verdict="explained", note="square roots of another processor")
        wide = [run(functools.partial(sides.theirs_in_float64, fractions)) for fractions in (False, True)]
    exact = min(inf if each.calls is None else apart(mine.calls, each.calls, IN_FLOAT64)[0] for each in wide)
    note = f"in float64 from its own tables diffusers {wide[0].failure or f'is {exact:.1e} from ours'}"
    note += f", in float32 {theirs.failure}" if theirs.failure else ""
    if exact <= max(IN_FLOAT64, min(1e-3 * (result.difference or inf), TOLERANCE)):
        return dataclasses.replace(result, verdict="explained", note=f"rounding: {note}")
    return different(note)


def _refused(result: Result, message: str, theirs: Run) -> Result:
    """The line of a case that we refuse."""
    if theirs.calls is None:
        return dataclasses.replace(result, note=f"both refuse: {message}")
    for part, reason in REFUSED.items():
        if part in message:
            return dataclasses.replace(result, verdict="explained", note=f"refused here: {reason}")
    return dataclasses.replace(result, verdict="different", note=f"only we refuse: {message}")


def compare(libraries: Libraries, number: int, seed: int = 0) -> Iterator[Result]:
    """A line for every one of `number` random configurations."""
    for index in range(number):
        yield judge(libraries, f"random {seed}.{index}", draw(seed, index))
