"""The guiders of diffusers as methods: from a guider's config to a method and its numbers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.guidance.auto import AUTOGUIDANCE
from ddpm_jax.guidance.classifier_free import CLASSIFIER_FREE
from ddpm_jax.guidance.frequencies import FREQUENCY_DECOUPLED
from ddpm_jax.guidance.magnitude import MAGNITUDE_AWARE
from ddpm_jax.guidance.method import Method
from ddpm_jax.guidance.numbers import within
from ddpm_jax.guidance.projected import adaptive_projected
from ddpm_jax.guidance.rescale import rescaled
from ddpm_jax.guidance.tangential import TANGENTIAL
from ddpm_jax.guidance.zero_star import CFG_ZERO_STAR
from ddpm_jax.names import choose, unknown
from ddpm_jax.samplers.table import Table

Settings = Mapping[str, Any]
Numbers = dict[str, Any]
# What all of them have, and what diffusers takes where nobody says.
COMMON: Settings = {
    "guidance_rescale": 0.0,
    "use_original_formulation": False,
    "start": 0.0,
    "stop": 1.0,
    "enabled": True,
}
# Their axes of [B, C, H, W], counted from both ends, and ours of [B, H, W, C].
AXES = {1: 3, 2: 1, 3: 2, -3: 3, -2: 1, -1: 2}


class Guider(NamedTuple):
    """Of one class: its settings beside COMMON with diffusers' defaults, and what they make of the rows."""

    defaults: Settings
    make: Callable[[Settings, np.ndarray], tuple[Method, Numbers]]
    """(settings, the numbers 0 .. N - 1 of the rows) -> the method, and its numbers but interval and rescale."""


def from_diffusers_guider(config: Settings, table: Table) -> tuple[Method, Numbers]:
    """(method, numbers) of a guider's config, for on(table, method, **numbers) and `guided`.

    start and stop become the interval, guidance_rescale the number of `rescaled`, use_original_formulation a scale that
    is one larger. CFG-Zero*'s zero rows stay 0 when they are rescaled, where diffusers has 0 / 0. AutoGuidance is how
    two networks' answers are combined: the worse network is the second of `of_each`, and what diffusers makes it with,
    by dropping layers of the first, is refused.

    Args:
      config: of a class of diffusers.guiders, `_class_name` in it; settings that it does not name are their defaults.
      table: that is to be guided: which rows are the first ones, and how many there are.

    Raises:
      ValueError: a class that cannot be, with the reason; a setting that its class does not have, or has no such form
        here.
    """
    name = config.get("_class_name")
    if name in REFUSED:
        raise ValueError(f"{name} cannot be: {REFUSED[name]}")
    guider = choose("guider", name, GUIDERS)  # type: ignore[reportArgumentType]
    allowed = {**COMMON, **guider.defaults}
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if wrong := sorted(set(given) - set(allowed)):
        raise unknown(f"setting of {name}", wrong[0], allowed)
    settings = {**allowed, **given}
    for key in ("start", "stop", "guidance_rescale"):
        if not isinstance(settings[key], int | float):
            raise ValueError(f"{key} must be one number, got {settings[key]!r}")
    method, numbers = guider.make(settings, np.arange(table.num_calls))
    interval = within(table, settings["start"], settings["stop"], "step") & numbers.pop("interval", True)
    if not settings["enabled"]:
        numbers.pop("zero", None)
        interval = np.zeros(table.num_calls, bool)
    if settings["guidance_rescale"] > 0:
        method, numbers = rescaled(method), {**numbers, "rescale": settings["guidance_rescale"]}
    return method, {**numbers, "interval": interval}


def _scale(settings: Settings, name: str = "guidance_scale") -> float:
    """Ours: u + scale (c - u)."""
    return settings[name] + 1 if settings["use_original_formulation"] else settings[name]


def _plain(method: Method) -> Callable[[Settings, np.ndarray], tuple[Method, Numbers]]:
    return lambda settings, rows: (method, {"scale": _scale(settings)})


def _zero_star(settings: Settings, rows: np.ndarray) -> tuple[Method, Numbers]:
    return CFG_ZERO_STAR, {"scale": _scale(settings), "zero": rows < settings["zero_init_steps"]}


def _magnitude(settings: Settings, rows: np.ndarray) -> tuple[Method, Numbers]:
    return MAGNITUDE_AWARE, {"scale": _scale(settings), "damping": settings["alpha"]}


def _projected(settings: Settings, rows: np.ndarray) -> tuple[Method, Numbers]:
    axes = settings["adaptive_projected_guidance_norm_dim"]
    axes = (axes,) if isinstance(axes, int) else axes
    if axes is not None and not set(axes) <= set(AXES):
        raise ValueError(
            f"adaptive_projected_guidance_norm_dim must name axes of [B, C, H, W] but the first, got {axes}"
        )
    start = "given" if settings["use_original_formulation"] else "nothing"
    method = adaptive_projected(start=start, axes=None if axes is None else tuple(AXES[axis] for axis in axes))
    scale = _scale(settings)
    numbers = {**_of_projection(settings), "scale": scale, "interval": scale != 1}
    return method, numbers


def _mix(settings: Settings, rows: np.ndarray) -> tuple[Method, Numbers]:
    scale, of_projection = _scale(settings), _scale(settings, "adaptive_projected_guidance_scale")
    # A scale of 1 turns projection off where it is the projection's, and all guidance where it is the other.
    projected = (rows > settings["adaptive_projected_guidance_start_step"]) & (of_projection != 1)
    start = "given" if settings["use_original_formulation"] else "nothing"
    numbers = {"scale": np.where(projected, of_projection, scale), "projected": projected, "interval": scale != 1}
    return adaptive_projected(start=start), {**_of_projection(settings), **numbers}


def _of_projection(settings: Settings) -> Numbers:
    momentum, threshold = (settings[f"adaptive_projected_guidance_{name}"] for name in ("momentum", "rescale"))
    return {
        "eta": settings["eta"],
        "momentum": 0.0 if momentum is None else momentum,
        "threshold": threshold if threshold > 0 else np.inf,
    }


def _frequencies(settings: Settings, rows: np.ndarray) -> tuple[Method, Numbers]:
    scales, parallel = settings["guidance_scales"], settings["parallel_weights"]
    parallel = 1.0 if parallel is None else parallel
    parallel = [parallel] * 2 if isinstance(parallel, int | float) else parallel
    if len(scales) != 2 or len(parallel) != 2:
        raise ValueError(f"guidance_scales and parallel_weights must be two numbers, got {scales} and {parallel}")
    if settings["guidance_rescale_space"] != "data":
        raise ValueError(f"guidance_rescale_space must be 'data', got {settings['guidance_rescale_space']!r}")
    fine, coarse = (scale + 1 if settings["use_original_formulation"] else scale for scale in scales)
    if (fine == 1) != (coarse == 1):
        raise ValueError(f"guidance_scales of which one guides and one does not fail in diffusers, got {scales}")
    numbers = {"scale": fine, "low": coarse, "parallel": parallel[0], "parallel_low": parallel[1]}
    return FREQUENCY_DECOUPLED, {**numbers, "interval": fine != 1}


_INSIDE = "it changes layers inside of the network; combine answers of your own by `of_each`"
REFUSED = {
    "LTX2Guidance": _INSIDE,
    "PerturbedAttentionGuidance": _INSIDE,
    "SkipLayerGuidance": _INSIDE,
    "SmoothedEnergyGuidance": _INSIDE,
}
_SCALE = {"guidance_scale": 7.5}
_APG = {f"adaptive_projected_guidance_{name}": value for name, value in {"momentum": None, "rescale": 15.0}.items()}
_MIX = {"scale": 10.0, "momentum": -0.5, "rescale": 10.0, "start_step": 5}
GUIDERS = {
    "AdaptiveProjectedGuidance": Guider(
        {**_SCALE, **_APG, "adaptive_projected_guidance_norm_dim": None, "eta": 1.0}, _projected
    ),
    "AdaptiveProjectedMixGuidance": Guider(
        {"guidance_scale": 3.5, "eta": 0.0}
        | {f"adaptive_projected_guidance_{name}": value for name, value in _MIX.items()},
        _mix,
    ),
    "AutoGuidance": Guider(_SCALE, _plain(AUTOGUIDANCE)),
    "ClassifierFreeGuidance": Guider(_SCALE, _plain(CLASSIFIER_FREE)),
    "ClassifierFreeZeroStarGuidance": Guider({**_SCALE, "zero_init_steps": 1}, _zero_star),
    # Whether projections are computed in float64 is rounding alone.
    "FrequencyDecoupledGuidance": Guider(
        {"guidance_scales": (10.0, 5.0), "parallel_weights": None, "guidance_rescale_space": "data"}
        | {"upcast_to_double": True},
        _frequencies,
    ),
    "MagnitudeAwareGuidance": Guider({"guidance_scale": 10.0, "alpha": 8.0}, _magnitude),
    "TangentialClassifierFreeGuidance": Guider(_SCALE, _plain(TANGENTIAL)),
}
