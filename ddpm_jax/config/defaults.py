"""What a configuration leaves to the images: the size of the network, and the rate it is trained at."""

import math
from dataclasses import replace

from ddpm_jax.config.networks.network import ATTENDED, Shape
from ddpm_jax.config.run import Config
from ddpm_jax.config.tasks import TASKS


def resolved(config: Config, image_shape: Shape) -> Config:
    """The configuration with everything that it leaves to images [H, W, C] filled in; what is given stays."""
    optimizer = config.optimizer
    if optimizer.learning_rate is None:
        optimizer = replace(optimizer, learning_rate=config.model.learning_rate(image_shape))
    model, condition = config.model.resolved(image_shape), config.condition.resolved()
    adversary = config.adversary.resolved(config.train.num_steps, image_shape)
    return replace(config, model=model, condition=condition, adversary=adversary, optimizer=optimizer)


def described(config: Config, image_shape: Shape, num_parameters: int, *, latents: bool = False) -> str:
    """The network of a resolved configuration in one line, as the options that give it; it is of images, or latents."""
    model, (height, width, channels) = config.model, image_shape
    options = {} if config.task == "diffusion" else {"task": config.task}
    if model.name != TASKS[config.task].networks[0]:
        options["model"] = model.name
    options |= {f"model.{name}".replace("_", "-"): _words(getattr(model, name)) for name in model.said}
    options["optimizer.learning-rate"] = _words(config.optimizer.learning_rate)
    said = " ".join(f"--{name} {value}".rstrip() for name, value in options.items())
    of = "latents" if latents else "images"
    line = f"network of {num_parameters:,} parameters for {of} of {height} x {width} x {channels}: {said}"
    part, rows, columns = model.attends_among(image_shape)
    if math.prod((rows, columns)) <= ATTENDED:
        return line
    slow = f"{line}; slow, as {part} attends among {rows} x {columns}"
    return slow if latents else f"{slow}: --data.image-size changes that"


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
