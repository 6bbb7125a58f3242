"""first_stage.json in the directory of a trained autoencoder: what its latents are divided by, and how good it is."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ddpm_jax.host.storage import naming, write_atomically

NAME = "first_stage.json"


@dataclass(frozen=True)
class Facts:
    """Measured on num_images images of the training.

    Attributes:
      scale: 1 / standard deviation of all numbers of the latents; of a posterior, of draws from it.
      deviation, mean: of each channel of the latents.
      psnr: of reconstructions, mean over the images, in dB.
      num_images: that they were measured on.
      weights: the checksum of the autoencoder.
    """

    scale: float
    deviation: list[float]
    mean: list[float]
    psnr: float
    num_images: int
    weights: str


def write(workdir: Path, facts: Facts) -> None:
    write_atomically(workdir / NAME, json.dumps(asdict(facts), indent=1) + "\n")


def read(workdir: Path) -> Facts:
    """What a run has written when it was trained.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is not what was written.
    """
    path = workdir / NAME
    if not path.exists():
        raise FileNotFoundError(f"no {path}, which holds the scale of the latents: the run is not trained to its end")
    try:
        with naming(path):
            values = json.loads(path.read_text())
        return Facts(**{item.name: values[item.name] for item in fields(Facts)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what a run has written ({type(error).__name__}: {error})") from None
