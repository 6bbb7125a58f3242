"""Folders of diffusers: a pipeline (model_index.json and one folder for each part), or one model by itself."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from flax import linen as nn

from ddpm_jax.interop import autoencoder, contents, diffusers, dit, files, flax_weights, layers
from ddpm_jax.interop.diffusers import classes, conditional, texts, weights
from ddpm_jax.names import choose, unknown
from ddpm_jax.process import LEARNED
from ddpm_jax.reading import Reading, ReadingVariance
from ddpm_jax.samplers.configs import CLASSES, read
from ddpm_jax.samplers.configs.common import DEFAULTS, prediction_of, schedule_of
from ddpm_jax.samplers.configs.reading import check_kinds, read_file, read_json
from ddpm_jax.trained import FirstStage, Trained

Reader = Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, Any]]
T = TypeVar("T")
Form = Literal["pytorch", "flax"]


@dataclass(frozen=True)
class Network:
    """How a class of diffusers is read.

    Attributes:
      from_config: its model.
      to_params: its parameters.
      defaults: what it takes for settings that are absent.
      others: names of further settings that from_config reads or refuses.
      idle: what changes nothing: values by name, None for any value.
      signature: an array of it by which it is found among others.
    """

    from_config: Callable[[Mapping[str, Any]], nn.Module]
    to_params: Reader
    defaults: Mapping[str, Any]
    others: Collection[str]
    idle: Mapping[str, Any] = field(default_factory=dict)
    signature: str = "conv_in.weight"


FIRST_STAGE_DEFAULTS = {
    **{"block_out_channels": (64,), "down_block_types": ("DownEncoderBlock2D",), "in_channels": 3},
    **{"layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32, "num_vq_embeddings": 256},
    **{"out_channels": 3, "scaling_factor": 0.18215, "up_block_types": ("UpDecoderBlock2D",)},
}
DIT = Network(
    dit.transformer2d_from_config,
    dit.transformer2d_to_params,
    dit.DEFAULTS,
    dit.REQUIRED,
    idle={"dropout": None, "norm_num_groups": None, "attention_type": "default"},
    signature="pos_embed.proj.weight",
)
NETWORKS = {
    "UNet2DModel": Network(
        diffusers.unet_from_config, diffusers.unet2d_to_params, diffusers.DEFAULTS, diffusers.CHOICES
    ),
    "UNet2DConditionModel": Network(
        conditional.unet_from_config,
        conditional.unet2dcond_to_params,
        conditional.DEFAULTS | {"sample_size": None},
        (*conditional.CHOICES, *conditional.NO_EFFECT),
    ),
    "FlaxUNet2DConditionModel": Network(
        conditional.unet_from_config,
        conditional.unet2dcond_to_params,
        conditional.DEFAULTS | {"sample_size": 32},
        (*conditional.CHOICES, *conditional.NO_EFFECT),
    ),
    "DiTTransformer2DModel": DIT,
    "Transformer2DModel": DIT,  # the name it had when DiT was published
}
SHIFTS = ("shift_factor", "latents_mean", "latents_std")
OF_FIRST_STAGES = (*autoencoder.REQUIRED, "vq_embed_dim", *SHIFTS)
IMAGES_ONLY = {"sample_size": None, "force_upcast": None}  # the size in training, and the precision, here float32
OF_ALL = (FIRST_STAGE_DEFAULTS, OF_FIRST_STAGES, IMAGES_ONLY, "encoder.conv_in.weight")
KL = Network(autoencoder.kl_from_config, autoencoder.kl_to_params, *OF_ALL)
FIRST_STAGES = {
    "AutoencoderKL": KL,
    "FlaxAutoencoderKL": KL,
    "VQModel": Network(autoencoder.vq_from_config, autoencoder.vq_to_params, *OF_ALL),
}
# What diffusers' training scripts write beside a network's settings in unet_ema/config.json: those of its average.
AVERAGE = frozenset("decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup".split())
# Names of the parts in model_index.json, in pipelines of one network each.
PARTS = {"network": ("unet", "transformer"), "first_stage": ("vae", "vqvae", "movq")}
# Has settings for clipping and thresholding, and does not read them.
NO_CLIPPING = ("TCDScheduler",)
# Settings that may be null, 0 or a list, though their defaults are not.
NULLABLE, ZERO = ("attention_head_dim", "norm_num_groups"), ("downsample_padding",)
LISTS = ("attention_head_dim", "transformer_layers_per_block", "layers_per_block", "cross_attention_dim", "sample_size")
# What settings are like whose default is null, where they are not null.
WHERE_NOT_NULL = {
    **dict.fromkeys(("sample_size", "attn_norm_num_groups", "num_class_embeds", "num_train_timesteps"), 1),
    **{"out_channels": 1, "class_embed_type": "timestep"},
}


def load_folder(folder: Path, config: Mapping[str, Any]) -> Trained:
    """A network, its scheduler and its first stage, if there is one.

    Args:
      folder: with model_index.json, or with the config.json of one model.
      config: {"scheduler": scheduler_config.json as a mapping, its path or its folder} for a folder without one; {}
        otherwise.

    Raises:
      FileNotFoundError: a file that the folder must have.
      ValueError: one that is damaged, or a part that is not known here.
    """
    for name in config:
        if name != "scheduler":
            raise unknown("setting for a diffusers folder", name, ("scheduler",))
    index = _index(folder)
    kind = index.get("_class_name", "a model by itself")
    network, first_stage = (_part(folder, index, names) for names in PARTS.values())
    if network is None:
        raise ValueError(f"{kind} has none of the networks known here: {' or '.join(PARTS['network'])}")
    table, settings = _settings("network", network, NETWORKS)
    said, scheduler = _scheduler(folder, config, index)
    process = {**DEFAULTS, "rescale_betas_zero_snr": False, **CLASSES[scheduler["_class_name"]][1], **scheduler}
    size, channels, variance = _shape_and_variance({**table.defaults, **settings}, table is DIT, said)
    arrays, taken = _weights(network, table.signature)
    layers.check_repeated(settings, arrays)
    stage, stage_taken = (None, "") if first_stage is None else _first_stage(first_stage)
    model = table.from_config(settings)
    told, names = classes.read(folder, model)
    text, no_text = texts.read(folder, index)
    return Trained(
        origin="; ".join(filter(None, (f"a diffusers folder ({kind})", taken, stage_taken))),
        config=settings,
        model=model,
        params=table.to_params(arrays, settings),
        schedule=schedule_of(process),
        reading=Reading(prediction_of(process), variance, _clip(process), _threshold(process)),
        image_shape=(*size, channels),
        scheduler_config=scheduler,
        first_stage=stage,
        condition=told,
        classes=names,
        text=text,
        no_text=no_text,
    )


def load_first_stage(folder: Path, form: Form | None = None) -> FirstStage:
    """The autoencoder of a pipeline's folder, or the one that a folder is of.

    Args:
      folder: of either.
      form: whose weights are read; PyTorch's where there are some by default.

    Raises:
      FileNotFoundError: no config.json or no weights, or none of that form.
      ValueError: a pipeline without one; otherwise as load_folder.
    """
    index = _index(folder)
    place = _part(folder, index, PARTS["first_stage"]) if index else folder
    if place is None:
        kind = index.get("_class_name", "the pipeline")
        raise ValueError(f"{kind} has none of the autoencoders known here: {', '.join(PARTS['first_stage'])}")
    return _first_stage(place, form)[0]


def _first_stage(folder: Path, form: Form | None = None) -> tuple[FirstStage, str]:
    """(AutoencoderKL or VQModel in a folder of diffusers, what is to be said of its weights).

    Raises:
      FileNotFoundError: no config.json or no weights.
      ValueError: damaged files; a class or setting that is not known here.
    """
    table, settings = _settings("autoencoder", folder, FIRST_STAGES)
    shifts = [key for key in SHIFTS if settings.get(key)]
    if shifts:
        raise ValueError(f"{folder.name}/config.json: latents here are scaled only, got {', '.join(shifts)}")
    arrays, said = _weights(folder, table.signature, form)
    layers.check_repeated(settings, arrays)
    params, scale = table.to_params(arrays, settings), {**table.defaults, **settings}["scaling_factor"]
    return FirstStage(table.from_config(settings), params, scale), said and f"{folder.name}: {said}"


def _index(folder: Path) -> dict[str, Any]:
    """model_index.json; {} for the folder of one model.

    Raises:
      FileNotFoundError: neither, but folders of models, as in the checkpoints of diffusers' training scripts, or
        checkpoints, as where such a script was stopped.
    """
    if (folder / "model_index.json").is_file():
        return read_json(folder / "model_index.json")
    if not (folder / "config.json").is_file():
        checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
        models = sorted(path.parent for place in (folder, *checkpoints[-1:]) for path in place.glob("*/config.json"))
        models = [path for path in models if path.name.startswith(PARTS["network"])]
        if models:
            average = next((path for path in models if path.name.endswith("_ema")), None)
            held = " and ".join(f"{path.relative_to(folder)}/" for path in models)
            raise FileNotFoundError(
                f"no model_index.json and no config.json in {folder}, which holds {held}: "
                f"name one of them, such as {average or models[0]}"
                f"{' with the average of the weights' if average else ''}"
            )
    return {}


def _part(folder: Path, index: Mapping[str, Any], names: tuple[str, ...]) -> Path | None:
    """Where the part is that the index names: in its own folder, or, as in old pipelines, beside the index."""
    if not index:
        return folder if names == PARTS["network"] else None
    for name in names:
        if index.get(name) not in (None, [None, None]):
            return folder / name if (folder / name).is_dir() else folder
    return None


def _settings(kind: str, folder: Path, tables: Mapping[str, Network]) -> tuple[Network, dict[str, Any]]:
    """How the model of a folder is read, and its settings without those that change nothing.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: not JSON; an unknown class; settings that are not known here, or not of their kind.
    """
    settings = read_json(folder / "config.json")
    name = settings.get("_class_name")
    name = name if isinstance(name, str) else repr(name)
    table = choose(f"class of {kind}", name, tables)
    known = {*table.defaults, *table.others}
    found = {key: value for key, value in settings.items() if not _changes_nothing(key, value, table)}
    others = [f"{key}={value!r}" for key, value in found.items() if key not in known and not key.startswith("_")]
    if others:
        a = "an" if name.startswith("A") else "a"
        raise ValueError(f"config.json: not {a} {name} that is known here: {', '.join(others)}")
    counted = {
        key: value
        for key, value in found.items()
        if not (value is None and key in NULLABLE) and not (value == 0 and value is not False and key in ZERO)
    }
    try:
        check_kinds(counted, table.defaults, WHERE_NOT_NULL, LISTS)
    except ValueError as error:
        raise ValueError(f"config.json: {error}") from error
    return table, found


def _changes_nothing(key: str, value: Any, table: Network) -> bool:
    if key in table.defaults or key in table.others or key.startswith("_"):
        return False
    if key in table.idle:
        return value is None or table.idle[key] in (None, value)
    return value is None or value is False or key in AVERAGE


def _weights(folder: Path, signature: str, form: Form | None = None) -> tuple[dict[str, np.ndarray], str]:
    """(the arrays of the network with this one, what is to be said of them), whatever is around it: see contents."""
    paths = [] if form == "flax" else weights.files_of(folder, weights.DIFFUSERS)
    if not paths and form != "pytorch" and (folder / flax_weights.NAME).is_file():
        return flax_weights.to_state_dict(weights.read(files.read_state_dict, folder / flax_weights.NAME)), ""
    if not paths:
        expected = {"pytorch": "diffusion_pytorch_model.safetensors or .bin", "flax": flax_weights.NAME}
        named = ", or ".join(expected.values() if form is None else [expected[form]])
        raise FileNotFoundError(f"no weights in {folder}: expected {named}")
    if len(paths) == 1:
        return weights.read(lambda path: contents.network_weights(files.read(path), signatures=(signature,)), *paths)
    return contents.network_weights(weights.arrays_of(paths), signatures=(signature,))


def _scheduler(
    folder: Path, config: Mapping[str, Any], index: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The scheduler's configuration, all that it says and what its class reads of that with _class_name.

    It is in its own folder, beside the index, given, or, of a checkpoint in training, where the whole pipeline is.
    Where it does not name its class, the index does.
    """
    path = _scheduler_file(folder)
    said = config.get("scheduler", path)
    if said is None:
        raise FileNotFoundError(
            f"no scheduler_config.json in {folder}, and without it nobody knows the schedule: give one as "
            "config={'scheduler': {'_class_name': 'DDPMScheduler', ...}} or config={'scheduler': its file or folder}"
        )
    if path is not None and "scheduler" in config and folder in path.parents:
        raise ValueError(f"a scheduler was given, and the folder has its own: {path.relative_to(folder)}")
    if isinstance(said, str | Path):
        said = read_file(said)
    if isinstance(said, Mapping) and said.get("_class_name") is None and isinstance(index.get("scheduler"), list):
        said = {**said, "_class_name": (index["scheduler"] or [None])[-1]}
    try:
        name, settings = read(said)
    except ValueError as error:
        raise ValueError(f"scheduler_config.json: {error}") from error
    if "beta_schedule" not in CLASSES[name][1]:
        raise ValueError(
            f"{name} has no betas, and networks here are loaded with their schedule: give the folder another class, "
            "such as DDPMScheduler; the table and denoiser of this one are samplers.from_diffusers_config's in Python"
        )
    return said, {"_class_name": name, **settings}


def _scheduler_file(folder: Path) -> Path | None:
    places = [folder / "scheduler", folder]
    if re.fullmatch(r"checkpoint-\d+", folder.parent.name):  # of a training script, which at its end saves a pipeline
        places += [folder.parent / "scheduler", folder.parent.parent / "scheduler"]
    paths = [place / "scheduler_config.json" for place in places]
    return next((path for path in paths if path.is_file()), None)


def _shape_and_variance(
    settings: Mapping[str, Any], is_dit: bool, scheduler: Mapping[str, Any]
) -> tuple[tuple[int, int], int, ReadingVariance]:
    """((H, W), channels) of what the network denoises, and the variance it learned or its scheduler has.

    "learned" there is the variance itself.
    """
    size = settings["sample_size"]
    sizes = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sizes) != 2:
        raise ValueError(f"config.json must give sample_size, one integer or two, got {size!r}")
    inputs, outputs = settings["in_channels"], settings["out_channels"]
    outputs = inputs if outputs is None else outputs
    said = scheduler.get("variance_type")
    if said in LEARNED or (is_dit and outputs == 2 * inputs):
        if outputs % 2:
            theirs = " (which is the variance itself there, not its logarithm)" if said == "learned" else ""
            raise ValueError(
                f"variance_type {said!r}{theirs} needs two outputs for each channel, got out_channels {outputs}"
            )
        # DiT's second half is that of learned_range, which its pipeline drops.
        return (sizes[0], sizes[1]), outputs // 2, "learned_variance" if said == "learned" else "learned_range"
    if outputs > inputs:
        raise ValueError(
            f"out_channels {outputs} exceed in_channels {inputs}, and variance_type {said!r} is not learned"
        )
    return (sizes[0], sizes[1]), outputs, "fixed_large" if said == "fixed_large" else "fixed_small"


def _clip(settings: Mapping[str, Any]) -> float | None:
    """Where the class reads it, and does not threshold."""
    clips = settings["_class_name"] not in NO_CLIPPING and settings.get("clip_sample", False)
    return settings.get("clip_sample_range", 1.0) if clips and _threshold(settings) is None else None


def _threshold(settings: Mapping[str, Any]) -> tuple[float, float] | None:
    """Where the class reads it; UniPC does where it integrates x_0."""
    reads = settings["_class_name"] not in NO_CLIPPING and settings.get("predict_x0", True)
    if not reads or not settings.get("thresholding", False):
        return None
    return settings["dynamic_thresholding_ratio"], settings["sample_max_value"]
