"""Guidance and thresholding beside installed guiders, pipelines and schedulers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import guidance, schedules
from ddpm_jax.samplers import ddim, grids, thresholded
from ddpm_jax.samplers.denoise import Denoised
from ddpm_jax.tools.parity import networks
from ddpm_jax.tools.parity.results import Result, along, compared, not_compared, relative, without_steps
from ddpm_jax.tools.parity.search import explained, having
from ddpm_jax.tools.parity.theirs import Libraries, nchw, nhwc

GROUP = "guidance"
TOLERANCE = 1e-5  # of single operations in float32


# ------------------------------------------------------------------------------------------------------ two networks


@dataclasses.dataclass(frozen=True)
class Combined:
    """guidance.classifier_free of outputs c and u, with every convention as one field.

    Attributes:
      strength: the number that is given,
      means: as this argument.
      guided: channels: those that x has, the first 3, or all, a learned variance too.
      halves: of the batch: c and u are read as they are, or exchanged.
      rescale: this much of the result, in [0, 1], is rescaled to the standard deviation of c. Whether that has
        1 / (n - 1) or 1 / n makes no difference: it is the same in both, and only their ratio counts.
    """

    strength: float
    means: Literal["scale", "weight"] = "scale"
    guided: Literal["like x", "first 3", "all"] = "like x"
    halves: Literal["read", "exchanged"] = "read"
    rescale: float = 0.0

    def __call__(self, c: np.ndarray, u: np.ndarray, channels: int) -> np.ndarray:
        """c and u [B, H, W, C or more], where x has `channels`."""
        if self.halves == "exchanged":
            c, u = u, c
        count = {"like x": channels, "first 3": 3, "all": c.shape[-1]}[self.guided]
        with jax.enable_x64(True):
            model_fn = guidance.classifier_free(
                lambda x, t: jnp.asarray(c, jnp.float64),
                lambda x, t: jnp.asarray(u, jnp.float64),
                **{self.means: self.strength},
            )
            found = np.asarray(model_fn(jnp.zeros((*c.shape[:-1], count)), jnp.zeros(len(c))))
        of = lambda x: x.std(axis=(1, 2, 3), keepdims=True)
        return self.rescale * found * of(c) / of(found) + (1 - self.rescale) * found


RESCALE = 0.7
CONVENTIONS: dict[str, Callable[[Combined], Combined | None]] = {
    "G1 the number is w of (1 + w) c - w u": having(means="weight"),
    "G1 the number is s of u + s (c - u)": having(means="scale"),
    "G2 the channels of x guided": having(guided="like x"),
    "G2 the first 3 channels guided": having(guided="first 3"),
    "G2 all channels guided, the variance too": having(guided="all"),
    "G2 halves of the batch exchanged": having(halves="exchanged"),
    "G2 halves of the batch not exchanged": having(halves="read"),
    f"G5 guidance_rescale={RESCALE}": having(rescale=RESCALE),
    "G5 guidance_rescale=0": having(rescale=0.0),
}
CFG, ORIGINAL = "ClassifierFreeGuidance", {"use_original_formulation": True}
# (ours, a learned variance beside eps, class of diffusers.guiders, its settings)
GUIDERS: tuple[tuple[Combined, bool, str, Mapping[str, Any]], ...] = (
    (Combined(3.0), False, CFG, {}),
    (Combined(3.0, means="weight"), False, CFG, ORIGINAL),
    (Combined(3.0), False, CFG, ORIGINAL),
    (Combined(3.0), False, CFG, {"guidance_rescale": RESCALE}),
    (Combined(3.0), True, CFG, {}),
    (Combined(3.0), False, "AutoGuidance", {"auto_guidance_layers": [0], "dropout": 0.1}),
)
RECORDED = "guidance.from_diffusers_guider, against its recorded answers in tests/guidance/test_guiders.py"
INSIDE = "it changes layers inside of the network, which no guidance of this package does"
ELSEWHERE = {
    **dict.fromkeys(
        (
            *("AdaptiveProjectedGuidance", "AdaptiveProjectedMixGuidance", "ClassifierFreeZeroStarGuidance"),
            *("FrequencyDecoupledGuidance", "MagnitudeAwareGuidance", "TangentialClassifierFreeGuidance"),
        ),
        RECORDED,
    ),
    **dict.fromkeys(
        ("LTX2Guidance", "PerturbedAttentionGuidance", "SkipLayerGuidance", "SmoothedEnergyGuidance"), INSIDE
    ),
    "StableDiffusionPipeline": "needs transformers; its u + s (c - u) is that of ClassifierFreeGuidance, and of "
    "latent-diffusion's recorded loops in tests/samplers/test_other_loops.py",
    "mean_shifted, score_shifted": "no such guider; against guided-diffusion's recorded loops in "
    "tests/samplers/test_openai_loops.py",
    "guidance of an interval of steps (start, stop)": RECORDED,
}


def compare(libraries: Libraries) -> Iterator[Result]:
    """Two networks, and thresholding."""
    for form, learned, name, settings in GUIDERS:
        yield compare_guider(libraries, form, learned, name, settings)
    yield compare_pipeline(libraries)
    for threshold, settings in THRESHOLDS:
        yield compare_threshold(libraries, threshold, settings)
    for name, reason in ELSEWHERE.items():
        yield not_compared(GROUP, name, "", reason)


def compare_guider(
    libraries: Libraries, ours: Combined, learned: bool, name: str, settings: Mapping[str, Any]
) -> Result:
    """classifier_free beside a guider of diffusers, of the same number."""
    c, u = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 6 if learned else 3)).astype(np.float32)
    guider = getattr(libraries.diffusers.guiders, name)(guidance_scale=ours.strength, **settings)
    theirs = nhwc(guider.forward(nchw(libraries.torch, c), nchw(libraries.torch, u)).pred)
    said = ", ".join(f"{key}={value}" for key, value in settings.items())
    item = f"classifier_free, {ours.means} {ours.strength:g}" + (", learned variance" if learned else "")
    return _combined(item, f"{name}({said})", ours, [(c, u)], [theirs], 3)


def _combined(
    item: str,
    against: str,
    ours: Combined,
    given: list[tuple[np.ndarray, np.ndarray]],
    theirs: list[np.ndarray],
    channels: int,
) -> Result:
    """Ours of every (c, u) beside theirs, in the channels that theirs has."""

    def found(form: Combined) -> list[np.ndarray]:
        return [form(*pair, channels)[..., : their.shape[-1]] for pair, their in zip(given, theirs, strict=True)]

    result = compared(GROUP, item, against, along(found(ours), theirs, TOLERANCE), TOLERANCE)
    return explained(result, ours, CONVENTIONS, lambda form: along(found(form), theirs, TOLERANCE).largest)


def compare_pipeline(libraries: Libraries, ours: Combined = Combined(4.0), num_steps: int = 3) -> Result:
    """classifier_free beside what DiTPipeline gives its scheduler at every step."""
    torch, diffusers = libraries
    net, stage = networks.network(libraries, "dit"), networks.network(libraries, "kl")
    scheduler, seen = diffusers.DDIMScheduler(), []
    step = scheduler.step

    def watched(output: Any, t: Any, x: Any, **options: Any) -> Any:
        seen.append((x, int(t), nhwc(output)))
        return step(output, t, x, **options)

    scheduler.step = watched
    pipeline = diffusers.DiTPipeline(transformer=net, vae=stage, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    labels, half = [1, 2], 2
    pipeline(labels, guidance_scale=ours.strength, num_inference_steps=num_steps, generator=torch.manual_seed(0))

    def answers(x: Any, t: int) -> tuple[np.ndarray, np.ndarray]:
        times, null = np.full(half, t), np.full(half, net.config.num_embeds_ada_norm)
        both = [networks.their_output(libraries, net, x[:half], times, {"y": y}) for y in (np.asarray(labels), null)]
        return nhwc(both[0]), nhwc(both[1])

    with torch.no_grad():
        given = [answers(x, t) for x, t, _ in seen]
    theirs = [output[:half] for _, _, output in seen]
    item = f"classifier_free, {ours.means} {ours.strength:g}, learned variance, {num_steps} steps"
    return _combined(item, "DiTPipeline: what its scheduler is given", ours, given, theirs, net.config.in_channels)


# ------------------------------------------------------------------------------------------------------ thresholding


@dataclasses.dataclass(frozen=True)
class Threshold:
    """samplers.thresholded."""

    ratio: float
    max_value: float


# (ours, settings of DDPMScheduler)
THRESHOLDS: tuple[tuple[Threshold, Mapping[str, Any]], ...] = (
    (Threshold(0.995, 1.0), {}),
    (Threshold(0.9, 3.0), {"dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}),
    (Threshold(0.995, np.inf), {}),  # as the paper has it
)
THRESHOLDING: dict[str, Callable[[Threshold], Threshold | None]] = {
    "G6 sample_max_value=1: clipping": having(max_value=1.0),
    "G6 dynamic_thresholding_ratio=0.995": having(ratio=0.995),
    "G6 dynamic_thresholding_ratio=0.95": having(ratio=0.95),
}


def compare_threshold(libraries: Libraries, ours: Threshold, settings: Mapping[str, Any]) -> Result:
    """thresholded beside the x_0 of DDPMScheduler.step."""
    scheduler = libraries.diffusers.DDPMScheduler(prediction_type="sample", thresholding=True, **settings)
    scheduler.set_timesteps(10)
    x, x_0 = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 3)).astype(np.float32)
    x_0 *= np.array([3, 0.2], np.float32).reshape(2, 1, 1, 1)  # of one image more than 1, of the other less
    stepped = scheduler.step(nchw(libraries.torch, x_0), 500, nchw(libraries.torch, x))
    theirs = nhwc(stepped.pred_original_sample)
    table = ddim(grids.leading(schedules.linear(1000), 1))
    row = jax.tree.map(lambda leaf: leaf[0], table.rows)

    def difference(form: Threshold) -> float:
        given = Denoised(jnp.asarray(x_0), jnp.zeros_like(x_0))
        found = thresholded(lambda x, row: given, form.ratio, form.max_value, "raw")(jnp.asarray(x), row)
        return relative(np.asarray(found.x_0), theirs)

    item = f"thresholded, ratio {ours.ratio:g}, largest {ours.max_value:g}"
    said = "".join(f", {key}={value:g}" for key, value in settings.items())
    found = without_steps(difference(ours), TOLERANCE)
    result = compared(GROUP, item, f"DDPMScheduler(thresholding=True{said})", found, TOLERANCE)
    return explained(result, ours, THRESHOLDING, difference)
