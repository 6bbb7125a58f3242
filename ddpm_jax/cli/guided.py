"""The options of guidance, of every command that draws."""

import dataclasses

from ddpm_jax import opening
from ddpm_jax.guided import Guidance, MethodName
from ddpm_jax.host.storage import Say
from ddpm_jax.trained import Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceArguments:
    guidance_scale: float | None = None
    """Of guidance u + scale (c - u), of what the network says told the class and told none; 1 is no guidance.
    diffusers' guidance_scale, the paper's weight + 1."""
    guidance_interval: tuple[float, float] | None = None
    """The part of the training's time in which there is guidance, such as 0.2 0.8; elsewhere the network is called
    once instead of twice. All by default."""
    guidance_rescale: float | None = None
    """How far guided answers are brought back to the size of the others, in [0, 1]; diffusers' guidance_rescale."""
    guidance_method: MethodName = "classifier-free"
    """How the two answers are combined; docs/guidance.md says what each does."""
    guidance_numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    """The method's other numbers, such as threshold 2.5 momentum -0.5 of apg."""
    guidance_with: str | None = None
    """Autoguidance: another network that was trained less or is smaller, in the place of being told none: a run, a
    folder, or RUN/checkpoints/STEP."""


def check_negative_prompt(negative: str | None, guidance: Guidance | None, trained: Trained) -> None:
    """Whether a text to lead away from has its effect.

    Raises:
      ValueError: it has none.
    """
    if negative is None:
        return
    if guidance is None:
        raise ValueError(f"--negative-prompt is for --guidance-scale, got {negative!r} without it")
    if guidance.beside is not None:
        raise ValueError(f"--negative-prompt {negative!r} is not for --guidance-with, which leads away")
    if trained.text is None:
        raise ValueError(f"--negative-prompt {negative!r} is for networks with a text encoder")


def chosen_guidance(arguments: GuidanceArguments, say: Say) -> Guidance | None:
    """As the options say; None for no guidance.

    Raises:
      FileNotFoundError, ValueError: as opening.open; one of the others without a scale.
    """
    given = {item.name: getattr(arguments, item.name) for item in dataclasses.fields(GuidanceArguments)}
    scale, default = given.pop("guidance_scale"), GuidanceArguments()
    if scale is None:
        for name, value in given.items():
            if value != getattr(default, name):
                raise ValueError(f"--{name.replace('_', '-')} is for --guidance-scale, got {value} without it")
        return None
    beside = None if arguments.guidance_with is None else opening.open_to_read(arguments.guidance_with, say)
    numbers = arguments.guidance_interval, arguments.guidance_rescale
    return Guidance(scale, *numbers, arguments.guidance_method, arguments.guidance_numbers, beside)
