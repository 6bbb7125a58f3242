"""What commands that draw from a trained network have in common: its options, and what they make of them."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_jax import opening, pictures
from ddpm_jax.cli.guided import GuidanceArguments, check_negative_prompt, chosen_guidance
from ddpm_jax.cli.made_with import of_network
from ddpm_jax.runs import posthoc
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.trained import Trained, checksum


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawArguments(GuidanceArguments):
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    sampler: str | None = None
    """One of those that `ddpm-jax samplers` lists, or a FILE.json of learn-sampler; by default the run's
    sample.sampler, or the one that a folder came with."""
    num_steps: int | None = None
    """Steps, by default the run's sample.num_steps, or 50; `ddpm-jax samplers` says how many network calls they are."""
    grid: str | None = None
    """Where the steps are: one of the grids that `ddpm-jax samplers` lists; None is the sampler's own."""
    timesteps: tuple[int, ...] | None = None
    """Which of the training's timesteps to visit, instead of num_steps of them, such as those that nll finds."""
    seed: int = 0
    """Image i of a seed begins with the same noise whatever num_images and batch_size are."""
    batch_size: int = 64
    """Images drawn at once."""
    decode_batch_size: int | None = None
    """Of a network of latents: so many are decoded at once, where the decoder's memory is too small for a batch."""
    label: int | None = None
    """The class of all images, where the network has classes; by default image i is of class i, counted around."""
    labels: tuple[int, ...] = ()
    """Several classes, in turn."""
    random_labels: bool = False
    """The class of each image at random, one as likely as another, instead of in turn."""
    prompt: tuple[str, ...] = ()
    """What the pictures show, of networks with a text encoder; several texts in turn."""
    prompts: Path | None = None
    """A file of texts, one a line, in turn."""
    negative_prompt: str | None = None
    """What guidance leads away from; by default no text."""
    ema_decay: float | None = None
    """The decay of the average of a run's parameters: one that it keeps; optimizer.ema_decay by default."""
    ema_sigma: float | None = None
    """The width of a power function instead: any that its snapshots of optimizer.ema_sigmas give."""
    config: Path | None = None
    """FILE.json with what a network of another project does not say itself, as interop.load(config=) takes it."""


def opened(arguments: DrawArguments, use: str) -> Trained:
    """The network, which needs no more than labels or a text.

    Args:
      arguments: the options.
      use: what it is needed for, in words.

    Raises:
      FileNotFoundError, ValueError, ImportError: as opening.open; one that needs more.
    """
    average = posthoc.Average(arguments.ema_decay, arguments.ema_sigma)
    trained = opening.open(arguments.source, print, average, arguments.config)
    trained.check_conditions(use, labels=True, texts=True)
    if trained.run is None:
        print(trained.origin)
    return trained


def preset_and_labels(arguments: DrawArguments, trained: Trained) -> tuple[Preset, pictures.Labels | pictures.Prompts]:
    """The sampler, and what the images are told.

    Raises:
      FileNotFoundError, ValueError, ImportError: as pictures.preset, pictures.labels, pictures.prompts, chosen_labels,
        chosen_prompts and chosen_guidance.
    """
    spacing = arguments.num_steps, arguments.grid, arguments.timesteps
    preset = pictures.preset(trained, arguments.sampler, *spacing, print)
    at_random = arguments.seed if arguments.random_labels else None
    guided = chosen_guidance(arguments, print)
    texts = chosen_prompts(arguments)
    check_negative_prompt(arguments.negative_prompt, guided, trained)
    if texts or trained.text is not None:
        return preset, pictures.prompts(trained, texts, arguments.negative_prompt or "", guided, print)
    return preset, pictures.labels(trained, chosen_labels(arguments), guided, at_random)


def chosen_prompts(arguments: DrawArguments) -> tuple[str, ...]:
    """The texts that image after image has in turn; none for none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: both options, or a label beside them; a file without texts.
    """
    path, texts = arguments.prompts, arguments.prompt
    if path is not None:
        if texts:
            raise ValueError(f"give either --prompt or --prompts, got {texts[0]!r} and {path}")
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}, which --prompts names")
        try:
            texts = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"--prompts {path} is not text: {error}") from None
        if not texts:
            raise ValueError(f"--prompts {path} has no texts")
    if texts and (arguments.label is not None or arguments.labels or arguments.random_labels):
        raise ValueError("give either --prompt or labels, got both")
    return texts


def chosen_labels(arguments: DrawArguments) -> tuple[int, ...]:
    """Those that image after image has in turn; none for all.

    Raises:
      ValueError: both options.
    """
    if arguments.label is None:
        return arguments.labels
    if arguments.labels:
        raise ValueError(f"give either --label or --labels, got {arguments.label} and {list(arguments.labels)}")
    return (arguments.label,)


def protocol(
    arguments: DrawArguments, trained: Trained, preset: Preset, labels: pictures.Labels | pictures.Prompts
) -> dict[str, Any]:
    """All that the bits of the pictures depend on, but for where they are drawn, as a person reads it."""
    guided = {
        name.replace("_", " "): value
        for name, value in dataclasses.asdict(arguments).items()
        if name in GUIDANCE and value != getattr(GuidanceArguments(), name)
    }
    beside = labels.guidance and labels.guidance.beside
    return {
        "network": trained.origin,
        "weights": f"CRC-32 {trained.weights}",
        "settings of the network": f"CRC-32 {of_network(trained)}",
        "average": _average(arguments, trained),
        "dtype": trained.config.get("dtype", "float32"),
        "sampler": arguments.sampler or (trained.sampler if trained.scheduler_config is None else "its own"),
        "steps": len(arguments.timesteps) if arguments.timesteps else (arguments.num_steps or trained.num_steps),
        "grid": "given timesteps" if arguments.timesteps else (arguments.grid or "the sampler's own"),
        "calls of the network": f"{preset.table.num_calls}{'' if labels.guidance is None else ', twice where guided'}",
        "table of the sampler": f"CRC-32 {checksum(preset.table)}",
        **_told(labels),
        **(guided or {"guidance": "none"}),
        **({"weights of guidance with": f"CRC-32 {beside.weights}"} if beside else {}),
        "seed": arguments.seed,
        "batch size": arguments.batch_size,
        **({} if arguments.decode_batch_size is None else {"decoded at once": arguments.decode_batch_size}),
        "generator": "threefry2x32, a key for each image",
    }


def _told(labels: pictures.Labels | pictures.Prompts) -> dict[str, str]:
    if isinstance(labels, pictures.Labels):
        return {"labels": labels.described}
    contexts = checksum((labels.contexts, labels.negative_context))
    return {"prompts": labels.described, "contexts of the prompts": f"CRC-32 {contexts}"}


GUIDANCE = {item.name for item in dataclasses.fields(GuidanceArguments)}


def _average(arguments: DrawArguments, trained: Trained) -> str:
    if arguments.ema_sigma is not None:
        return f"power function of width {arguments.ema_sigma:g}"
    if trained.run is None:
        return "as in the file"
    decay = trained.run.optimizer.ema_decay if arguments.ema_decay is None else arguments.ema_decay
    return f"exponential of decay {decay:g}"
