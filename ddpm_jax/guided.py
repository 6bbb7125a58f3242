"""Guidance as it is asked for by names and numbers, of a network that was trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from ddpm_jax import guidance, samplers
from ddpm_jax.guidance.method import MakeDenoise, Method
from ddpm_jax.names import unknown
from ddpm_jax.trained import Trained

MethodName = Literal[
    "classifier-free", "apg", "cfg++", "cfg-zero-star", "tangential", "magnitude-aware", "frequency-decoupled"
]
METHODS: dict[str, Method] = {
    "classifier-free": guidance.CLASSIFIER_FREE,
    "apg": guidance.ADAPTIVE_PROJECTED,
    "cfg++": guidance.CFG_PLUS_PLUS,
    "cfg-zero-star": guidance.CFG_ZERO_STAR,
    "tangential": guidance.TANGENTIAL,
    "magnitude-aware": guidance.MAGNITUDE_AWARE,
    "frequency-decoupled": guidance.FREQUENCY_DECOUPLED,
}


@dataclass(frozen=True)
class Guidance:
    """What guides a sampler.

    Attributes:
      scale: of the method; 1 is no guidance, but for "cfg++".
      interval: the part of the training's time outside of which there is none, (0.2, 0.8) of T; None for all of it.
      rescale: see guidance.rescaled; None for none.
      name: of the method.
      numbers: the method's others.
      beside: a network that is worse, for autoguidance; None for what the network says told nothing.
    """

    scale: float
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    name: MethodName = "classifier-free"
    numbers: Mapping[str, float] = field(default_factory=dict)
    beside: Trained | None = None

    @property
    def method(self) -> Method:
        """How the answers are combined."""
        found = METHODS[self.name] if self.beside is None else guidance.AUTOGUIDANCE
        return found if self.rescale is None else guidance.rescaled(found)

    def on(self, table: samplers.Table, num_timesteps: int) -> samplers.Table:
        """The table with these numbers."""
        within = None
        if self.interval is not None:
            low, high = self.interval
            within = guidance.within(table, num_timesteps * low, num_timesteps * high)
        numbers = dict(self.numbers) if self.rescale is None else {**self.numbers, "rescale": self.rescale}
        return guidance.on(table, self.method, scale=self.scale, interval=within, **numbers)

    def check(self, trained: Trained) -> None:
        """Whether this network can be guided so.

        Raises:
          ValueError: it knows no "nothing"; a network beside it of another kind; numbers out of range or unknown.
        """
        if self.beside is not None:
            self._check_beside(trained, self.beside)
        elif trained.conditions.null_label is None and not trained.conditions.text:
            raise ValueError(f"{_why_not(trained)}, got --guidance-scale {self.scale:g}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1] <= 1:
            low, high = self.interval
            raise ValueError(
                f"--guidance-interval must be two numbers in [0, 1], the smaller first, got {low:g} {high:g}"
            )
        if self.rescale is not None and not 0 <= self.rescale <= 1:
            raise ValueError(f"--guidance-rescale must lie in [0, 1], got {self.rescale:g}")
        numbers = set(self.method.defaults) - {"rescale"}
        for name in self.numbers:
            if name not in numbers:
                raise unknown(f"number of --guidance-method {self.name}", name, sorted(numbers))

    def _check_beside(self, trained: Trained, beside: Trained) -> None:
        if self.name != "classifier-free":
            raise ValueError(f"--guidance-method is not for --guidance-with, got {self.name}")
        for what in ("image_shape", "reading", "conditions"):
            ours, theirs = getattr(trained, what), getattr(beside, what)
            if ours != theirs:
                raise ValueError(f"--guidance-with must have the same {what}, {ours}, got {theirs}")
        if list(trained.schedule.betas_float64) != list(beside.schedule.betas_float64):
            raise ValueError("--guidance-with must have the same noise schedule")


def parameters(trained: Trained, guided: Guidance | None) -> tuple[Any, Any]:
    """Those of the network, and of the one beside it if there is one: arguments of a compiled program."""
    return trained.params, guided and guided.beside and guided.beside.params


def denoise_of(
    trained: Trained,
    guided: Guidance | None,
    params: tuple[Any, Any],
    told: Mapping[str, jax.Array],
    make_denoise: MakeDenoise,
    otherwise: Mapping[str, jax.Array] | None = None,
) -> samplers.Denoise | samplers.Remembering:
    """What a sampler calls, with guidance or without.

    Args:
      trained: the network.
      guided: how; None for no guidance.
      params: from `parameters`.
      told: of each example, [B, ...].
      make_denoise: from a model_fn to a denoiser.
      otherwise: what each is told instead, such as a negative prompt; None for what trained.told_nothing says.
    """
    own, worse = params
    if guided is None:
        return make_denoise(trained.model_fn(own, **told))
    if guided.beside is not None:
        answers = guidance.of_each(trained.model_fn(own, **told), guided.beside.model_fn(worse, **told))
    else:
        nothing = trained.told_nothing(told) if otherwise is None else otherwise
        answers = guidance.asked(trained.network(own), told, nothing)
    return guidance.guided(answers, make_denoise, guided.method)


def _why_not(trained: Trained) -> str:
    if trained.conditions.num_classes is None:
        return "the network has no classes"
    if trained.run is not None:
        return "the run was trained with --condition.drop 0, so that its network does not know what no class is"
    return "the network has no label that stands for no class"
