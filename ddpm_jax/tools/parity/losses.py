"""Weightings by the signal-to-noise ratio beside the installed compute_snr."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ddpm_jax import schedules, weightings
from ddpm_jax.tools.parity.conventions import in_float32
from ddpm_jax.tools.parity.results import Result, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.search import explained, having
from ddpm_jax.tools.parity.theirs import Libraries

GROUP = "losses"
TOLERANCE = 1e-4
GAMMA = 5.0


@dataclasses.dataclass(frozen=True)
class Form:
    """A weight, with every convention as one field.

    Attributes:
      over: what min(snr, gamma) is divided by; "prediction": 1, snr or snr + 1, as the network predicts x_0, eps or v.
      schedule: in which numbers.
    """

    over: Literal["prediction", "1", "snr", "snr + 1"] = "prediction"
    schedule: Literal["float64", "float32"] = "float64"


CONVENTIONS: dict[str, Callable[[Form], Form | None]] = {
    "L4 over 1, whatever is predicted": having(over="1"),
    "L4 over SNR, whatever is predicted": having(over="snr"),
    "L4 over SNR + 1, whatever is predicted": having(over="snr + 1"),
    "S5 schedule in float32": having(schedule="float32"),
}
ELSEWHERE = {
    "objectives of OpenAI, the DDIM repository and EDM": "no function of the installed packages; against recordings in "
    "tests/test_objectives_golden.py, tests/evaluate/test_vlb.py and tests/special/test_edm.py",
    **dict.fromkeys(
        ("weightings.uniform", "weightings.truncated_snr", "weightings.p2", "weightings.sigmoid", "weightings.edm"),
        "no function of the installed packages; closed forms in tests/test_weightings.py",
    ),
    "diffusers.training_utils.compute_loss_weighting_for_sd3": "of flow matching, which this package has not",
    "diffusers.training_utils.compute_confidence_aware_loss": "no such loss in this package",
    "diffusers.training_utils.compute_dream_and_update_latents": "no such training in this package",
}


def line(item: str, against: str, difference: Callable[[Form], float], ours: Form) -> Result:
    """The result of a weight in this form."""
    result = compared(GROUP, item, against, without_steps(difference(ours), TOLERANCE), TOLERANCE)
    return explained(result, ours, CONVENTIONS, difference)


def compare(libraries: Libraries) -> Iterator[Result]:
    """Weights of every prediction."""
    for prediction in ("eps", "x_0", "v"):
        yield compare_min_snr(libraries, prediction)
    yield compare_snr(libraries)
    for name, reason in ELSEWHERE.items():
        yield not_compared(GROUP, name, "", reason)


def _snr(libraries: Libraries, form: Form) -> tuple[schedules.Schedule, np.ndarray]:
    """The linear schedule and its signal-to-noise ratio as diffusers computes it."""
    training_utils = libraries.diffusers.training_utils
    scheduler = libraries.diffusers.DDPMScheduler()
    snr = training_utils.compute_snr(scheduler, libraries.torch.arange(1000)).double().numpy()
    ours = schedules.linear(1000)
    return in_float32(ours) if form.schedule == "float32" else ours, snr


def compare_min_snr(libraries: Libraries, prediction: Any, ours: Form = Form()) -> Result:
    """weightings.min_snr beside min(snr, gamma) / (1, snr or snr + 1) of compute_snr."""
    over = {"x_0": "1", "eps": "snr", "v": "snr + 1"}

    def difference(form: Form) -> float:
        schedule, snr = _snr(libraries, form)
        ours = np.asarray(weightings.min_snr(gamma=GAMMA)(schedule, jnp.arange(1000), prediction), np.float64)
        divisor = {"1": 1, "snr": snr, "snr + 1": snr + 1}
        if form.over != "prediction":
            ours = ours * divisor[over[prediction]] / divisor[form.over]
        return relative(ours, np.minimum(snr, GAMMA) / divisor[over[prediction]])

    against = f"min(compute_snr, {GAMMA:g}) / ({over[prediction]})"
    return line(f"weightings.min_snr, {prediction}, T = 1000", against, difference, ours)


def compare_snr(libraries: Libraries) -> Result:
    """weightings.snr on x_0 beside compute_snr."""

    def difference(form: Form) -> float:
        schedule, snr = _snr(libraries, form)
        return relative(np.asarray(weightings.snr()(schedule, jnp.arange(1000), "x_0")), snr)

    return line("weightings.snr, x_0, T = 1000", "compute_snr", difference, Form())
