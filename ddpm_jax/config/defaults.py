"""What a configuration leaves to the images: the size of the network, and the rate it is trained at."""

import math
from dataclasses import replace

from ddpm_jax.config.networks.network import ATTENDED, Shape
from ddpm_jax.config.networks.unet import UNetConfig
from ddpm_jax.config.run import Config


def resolved(config: Config, image_shape: Shape) -> Config:
    """The configuration with everything that it leaves to images [H, W, C] filled in; what is given stays."""
    optimizer = config.optimizer
    if optimizer.learning_rate is None:
        optimizer = replace(optimizer, learning_rate=config.model.learning_rate(image_shape))
    return replace(config, model=config.model.resolved(image_shape), optimizer=optimizer)


def described(config: Config, image_shape: Shape, num_parameters: int) -> str:
    """The network of a resolved configuration in one line, as the options that give it."""
    model, (height, width, channels) = config.model, image_shape
    options = {} if isinstance(model, UNetConfig) else {"model": model.name}
    options |= {f"model.{name}".replace("_", "-"): _words(getattr(model, name)) for name in model.said}
    options["optimizer.learning-rate"] = _words(config.optimizer.learning_rate)
    said = " ".join(f"--{name} {value}".rstrip() for name, value in options.items())
    line = f"network of {num_parameters:,} parameters for images of {height} x {width} x {channels}: {said}"
    part, rows, columns = model.attends_among(image_shape)
    if math.prod((rows, columns)) <= ATTENDED:
        return line
    return f"{line}; slow, as {part} attends among {rows} x {columns}: --data.image-size changes that"


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
