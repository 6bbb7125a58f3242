"""Objectives and weightings beside recorded losses and their gradients, and beside the installed compute_snr."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import objectives, schedules, weightings
from ddpm_jax.special import edm
from ddpm_jax.tools.parity import bounds, mixture
from ddpm_jax.tools.parity.conventions import in_float32
from ddpm_jax.tools.parity.results import Result, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.search import explained, having
from ddpm_jax.tools.parity.tables import load
from ddpm_jax.tools.parity.theirs import Libraries
from ddpm_jax.train import ema

GROUP = "losses"
TOLERANCE = 1e-4
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """A loss, with every convention as one field.

    Attributes:
      pixels: what is done over them.
      vlb_weight: of the single term of the bound in `hybrid`.
      terms: the bound is estimated by one term, or by T times it.
      unit: of the bound.
      over: what the weight min(snr, gamma) is divided by; "prediction": 1, snr or snr + 1, as the network predicts x_0,
        eps or v.
      schedule: in which numbers.
    """

    pixels: Literal["mean", "sum", "half sum"] = "mean"
    vlb_weight: Literal["T / 1000", "1", "0.001"] = "T / 1000"
    terms: Literal["one", "T"] = "one"
    unit: Literal["bits", "nats"] = "bits"
    over: Literal["prediction", "1", "snr", "snr + 1"] = "prediction"
    schedule: Literal["float64", "float32"] = "float64"

    def reduced(self, mean: np.ndarray, size: int) -> np.ndarray:
        """A mean over pixels as this form has it; size: how many there are of one example."""
        return mean * {"mean": 1, "sum": size, "half sum": size / 2}[self.pixels]

    def bound(self, bits: np.ndarray, num_timesteps: int) -> np.ndarray:
        """A term in bits as this form has it."""
        return bits * (np.log(2) if self.unit == "nats" else 1) * (num_timesteps if self.terms == "T" else 1)


CONVENTIONS: dict[str, Callable[[Form], Form | None]] = {
    "L1 mean over pixels": having(pixels="mean"),
    "L1 sum over pixels": having(pixels="sum"),
    "L1 half the sum over pixels": having(pixels="half sum"),
    "L2 vlb times T / 1000": having(vlb_weight="T / 1000"),
    "L2 vlb times 1": having(vlb_weight="1"),
    "L2 vlb times 0.001": having(vlb_weight="0.001"),
    "L2 T times the single term": having(terms="T"),
    "L2 the bound in nats": having(unit="nats"),
    "L4 over 1, whatever is predicted": having(over="1"),
    "L4 over SNR, whatever is predicted": having(over="snr"),
    "L4 over SNR + 1, whatever is predicted": having(over="snr + 1"),
    "S5 schedule in float32": having(schedule="float32"),
}
ELSEWHERE = {
    "samplers.x_0_from_mean": "no code has it for other steps; PREVIOUS_X in losses and in samplers; "
    "tests/samplers/test_predictions.py",
    "samplers.x_0_from_edm": "no code has it on the levels of a schedule",
    "objectives.edm": "no code has it on the levels of a schedule; it is edm.loss there in tests/special/test_edm.py",
    **dict.fromkeys(
        ("weightings.uniform", "weightings.truncated_snr", "weightings.p2", "weightings.sigmoid", "weightings.edm"),
        "no function of the installed packages; closed forms in tests/test_weightings.py",
    ),
    "diffusers.training_utils.compute_loss_weighting_for_sd3": "of flow matching, which this package has not",
    "diffusers.training_utils.compute_confidence_aware_loss": "no such loss in this package",
    "diffusers.training_utils.compute_dream_and_update_latents": "no such training in this package",
    "recorded openai/loss_second_moment_resampler": "not by this command; against the recording in "
    "tests/test_timesteps.py",
}


def line(
    item: str, against: str, difference: Callable[[Form], float], tolerance: float = TOLERANCE, ours: Form = Form()
) -> Result:
    """The result of a loss in this form."""
    result = compared(GROUP, item, against, without_steps(difference(ours), tolerance), tolerance)
    return explained(result, ours, CONVENTIONS, difference)


def compare(libraries: Libraries, golden: Path | None) -> Iterator[Result]:
    """Objectives, bounds, weights."""
    if golden is None:
        for name in (*bounds.FILES, "other/ddim_loss_ema", "other/edm_losses"):
            yield not_compared(GROUP, f"recorded {name}", "", "recorded in PyTorch: needs --golden")
    else:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            yield from bounds.compare(golden, line)
            yield from compare_ddim(golden)
            yield from compare_edm(golden)
    for prediction in ("eps", "x_0", "v"):
        yield compare_min_snr(libraries, prediction)
    yield compare_snr(libraries)
    for name, reason in ELSEWHERE.items():
        yield not_compared(GROUP, name, "", reason)


# ---------------------------------------------------------------------------------------------------------- recorded


def compare_ddim(golden: Path) -> Iterator[Result]:
    """simple beside the loss of ermongroup/ddim, each example and their mean; and its average of parameters."""
    arrays, meta = load(golden, "other/ddim_loss_ema")
    against = f"{meta['upstream'][0]['repo']}, recorded ddim_loss_ema"
    schedule = schedules.from_betas(arrays["betas"].astype(np.float64))
    images = [jnp.asarray(arrays[name].transpose(0, 2, 3, 1), jnp.float64) for name in ("x0", "e")]

    def model_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.einsum("oc,nhwc->nhwo", weights, x) + t.astype(x.dtype).reshape(-1, 1, 1, 1) / 1000

    weights, t = jnp.asarray(arrays["W"], jnp.float64), jnp.asarray(arrays["t"], jnp.int32)
    found = np.asarray(objectives.simple(model_fn, schedule, images[0], t, images[1]))
    size = images[0][0].size
    for item, reduce, name in (
        ("each example", lambda losses: losses, "loss_keepdim"),
        ("mean over the batch", lambda losses: losses.mean(), "loss"),
    ):
        yield line(
            f"simple, {item}", against, lambda form, reduce=reduce, name=name: relative(
                reduce(form.reduced(found, size)), arrays[name]
            )
        )  # fmt: skip
    shadow, errors = jnp.asarray(arrays["ema_init"]), []
    for k, params in enumerate(arrays["ema_params"]):  # the recorded average begins with the initial parameters
        shadow = ema.update(shadow, jnp.asarray(params), jnp.int32(k + 1), meta["mu"])
        errors.append(relative(np.asarray(shadow), arrays["ema_shadow"][k]))
    yield line(f"ema.update, {len(errors)} updates", against, lambda form: max(errors))


def compare_edm(golden: Path) -> Iterator[Result]:
    """edm.loss beside EDM's three losses, whose squared errors are recorded pixel by pixel."""
    arrays, meta = load(golden, "other/edm_losses")
    x_0 = jnp.asarray(arrays["images"], jnp.float64)
    for case in ("edm", "vp", "ve"):
        components = mixture.Components(*(arrays[f"{case}.gmm_{part}"] for part in ("mu", "s", "w")))
        sigma = jnp.asarray(arrays[f"{case}.sigma"].ravel(), jnp.float64)

        def denoise(x: jax.Array, sigma: jax.Array, components: mixture.Components = components) -> jax.Array:
            each = [
                mixture.exact(np.asarray(image)[None] / np.hypot(1, level), 1 / (1 + level**2), components).x_0[0]
                for image, level in zip(x, np.asarray(sigma), strict=True)
            ]
            return jnp.asarray(np.stack(each))

        weight = edm.edm_weight(sigma) if case == "edm" else 1 / sigma**2
        found = np.asarray(edm.loss(denoise, x_0, sigma, jnp.asarray(arrays[f"{case}.noise"], jnp.float64), weight))
        expected = arrays[f"{case}.loss"].astype(np.float64).mean(axis=(1, 2, 3))
        item, against = f"edm.loss, weight of {case}", f"{meta['upstream'][0]['repo']}, {case.upper()}Loss, mean"
        # D - x_0 cancels where sigma is small, and the weight is up to 1 / sigma^2: their float32 shows.
        yield line(item, against, lambda form, pair=(found, expected): relative(
            form.reduced(pair[0], x_0[0].size), pair[1]
        ))  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- weights

GAMMA = 5.0


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
    return line(f"weightings.min_snr, {prediction}, T = 1000", against, difference, ours=ours)


def compare_snr(libraries: Libraries) -> Result:
    """weightings.snr on x_0 beside compute_snr."""

    def difference(form: Form) -> float:
        schedule, snr = _snr(libraries, form)
        return relative(np.asarray(weightings.snr()(schedule, jnp.arange(1000), "x_0")), snr)

    return line("weightings.snr, x_0, T = 1000", "compute_snr", difference)
