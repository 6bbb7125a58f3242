"""Folders of diffusers: a pipeline (model_index.json and one folder for each part), or one model by itself."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from ddpm_jax.names import choose, unknown

from ..samplers.configs import CLASSES
from ..samplers.configs.common import prediction_of, schedule_of
from . import autoencoder, conditional, diffusers, dit, files
from .loaded import FirstStage, Loaded

Reader = Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """How a class of diffusers is read: its model, its parameters, what it takes for settings that are absent."""

    from_config: Callable[[Mapping[str, Any]], nn.Module]
    to_params: Reader
    defaults: Mapping[str, Any]


FIRST_STAGE_DEFAULTS = {
    **{"block_out_channels": (64,), "down_block_types": ("DownEncoderBlock2D",), "in_channels": 3},
    **{"layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32, "num_vq_embeddings": 256},
    **{"out_channels": 3, "scaling_factor": 0.18215, "up_block_types": ("UpDecoderBlock2D",)},
}
DIT = Network(dit.transformer2d_from_config, dit.transformer2d_to_params, dit.DEFAULTS)
NETWORKS = {
    "UNet2DModel": Network(diffusers.unet_from_config, diffusers.unet2d_to_params, diffusers.DEFAULTS),
    "UNet2DConditionModel": Network(
        conditional.unet_from_config, conditional.unet2dcond_to_params, conditional.DEFAULTS | {"sample_size": None}
    ),
    "DiTTransformer2DModel": DIT,
    "Transformer2DModel": DIT,  # the name it had when DiT was published
}
FIRST_STAGES = {
    "AutoencoderKL": Network(autoencoder.kl_from_config, autoencoder.kl_to_params, FIRST_STAGE_DEFAULTS),
    "VQModel": Network(autoencoder.vq_from_config, autoencoder.vq_to_params, FIRST_STAGE_DEFAULTS),
}
# Names of the parts in model_index.json, in pipelines of one network each.
PARTS = {"network": ("unet", "transformer"), "first_stage": ("vae", "vqvae", "movq")}
# These have a clip_sample among their settings and do not read it.
NO_CLIPPING = ("PNDMScheduler", "TCDScheduler")
# Settings that may be null, 0 or a list, though their defaults are not.
NULLABLE, ZERO = ("attention_head_dim",), ("downsample_padding",)
LISTS = ("attention_head_dim", "transformer_layers_per_block", "layers_per_block", "cross_attention_dim", "sample_size")
# What settings are like whose default is null, where they are not null.
WHERE_NOT_NULL = {
    **dict.fromkeys(("sample_size", "attn_norm_num_groups", "num_class_embeds", "num_train_timesteps"), 1),
    **dict.fromkeys(("sigma_min", "sigma_max", "shift_terminal"), 0.1),
    **{"out_channels": 1, "class_embed_type": "timestep", "variance_type": "fixed_small", "trained_betas": (0.1,)},
}
MOST = 2**24  # of any count: larger ones are mistakes, and take forever
# Of the weights, in one file and in several.
WEIGHTS = re.compile(r"diffusion_pytorch_model(\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")
INDEX = re.compile(r"diffusion_pytorch_model\.(?P<kind>safetensors|bin)\.index(\.(?P<variant>\w+))?\.json")


def load_folder(folder: Path, config: Mapping[str, Any]) -> Loaded:
    """A network, its scheduler and its first stage, if there is one.

    Args:
      folder: with model_index.json, or with the config.json of one model.
      config: {"scheduler": scheduler_config.json as a mapping} for a folder without one; {} otherwise.

    Raises:
      FileNotFoundError: a file that the folder must have.
      ValueError: one that is damaged, or a part that is not known here.
    """
    for name in config:
        if name != "scheduler":
            raise unknown("setting for a diffusers folder", name, ("scheduler",))
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    kind = index.get("_class_name", "a model by itself")
    network, first_stage = (_part(folder, index, names) for names in PARTS.values())
    if network is None:
        raise ValueError(f"{kind} has none of the networks known here: {' or '.join(PARTS['network'])}")
    settings = read_json(network / "config.json")
    table = _table("network", settings, NETWORKS)
    given = _scheduler(folder, config)
    known = CLASSES[given["_class_name"]][1]
    scheduler = {setting: value for setting, value in given.items() if setting.startswith("_") or setting in known}
    process = {**known, **scheduler}
    size, channels, variance = _shape_and_variance({**table.defaults, **settings}, table is DIT, given)
    model, params = _read_part(network, settings, table)
    return Loaded(
        origin=f"a diffusers folder ({kind})",
        config=settings,
        model=model,
        params=params,
        schedule=schedule_of({"rescale_betas_zero_snr": False, **process}),
        prediction=prediction_of(process),
        variance=variance,
        image_shape=(*size, channels),
        clip=_clip(process),
        scheduler_config=scheduler,
        first_stage=None if first_stage is None else load_first_stage(first_stage),
    )


def load_first_stage(folder: Path) -> FirstStage:
    """The autoencoder in a folder of diffusers: AutoencoderKL or VQModel.

    Raises:
      FileNotFoundError: no config.json or no weights.
      ValueError: damaged files; a class or setting that is not known here.
    """
    settings = read_json(folder / "config.json")
    table = _table("autoencoder", settings, FIRST_STAGES)
    shifts = [key for key in ("shift_factor", "latents_mean", "latents_std") if settings.get(key)]
    if shifts:
        raise ValueError(f"{folder.name}/config.json: latents here are scaled only, got {', '.join(shifts)}")
    model, params = _read_part(folder, settings, table)
    return FirstStage(model, params, {**table.defaults, **settings}["scaling_factor"])


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} must hold a mapping, got {type(found).__name__}")
    return found


def _part(folder: Path, index: Mapping[str, Any], names: tuple[str, ...]) -> Path | None:
    """Where the part is that the index names: in its own folder, or, as in old pipelines, beside the index."""
    if not index:
        return folder if names == PARTS["network"] else None
    for name in names:
        if index.get(name) not in (None, [None, None]):
            return folder / name if (folder / name).is_dir() else folder
    return None


def _table(kind: str, settings: Mapping[str, Any], tables: Mapping[str, Network]) -> Network:
    """How this model is read, if its settings are of the right kinds."""
    name = settings.get("_class_name")
    table = choose(f"class of {kind}", name if isinstance(name, str) else repr(name), tables)
    _check_kinds("config.json", settings, table.defaults)
    return table


def _read_part(folder: Path, settings: Mapping[str, Any], table: Network) -> tuple[nn.Module, dict[str, Any]]:
    model = table.from_config(settings)
    return model, table.to_params(_weights(folder), settings)


def _check_kinds(file: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Whether every setting is of the kind its default is: a number, a word, a list of those.

    Raises:
      ValueError: one is not.
    """
    for name, value in settings.items():
        default = defaults.get(name)
        nullable = default is None or name in NULLABLE
        default = WHERE_NOT_NULL.get(name) if default is None else default
        if default is not None and not (nullable and value is None) and not _fits(value, default, name):
            raise ValueError(f"{file}: {name} must be like {default!r}, got {value!r}")


def _fits(value: Any, default: Any, name: str) -> bool:
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    if isinstance(value, list | tuple) and (isinstance(default, tuple) or name in LISTS):
        element = default[0] if isinstance(default, tuple) and default else 1
        return all(_fits(item, element, "") for item in value)
    if isinstance(default, tuple) or isinstance(value, bool):
        return False
    if isinstance(default, int):  # a count; where 0 is a default, 0 is a value
        return isinstance(value, int) and (0 if name in ZERO else min(default, 1)) <= value <= MOST
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # which NaN and infinity are not


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the folder's safetensors or .bin, in one file or several, plain or the only variant there is."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = WEIGHTS.fullmatch(path.name) or INDEX.fullmatch(path.name)
        if match:
            found.setdefault(match["variant"] or "", {})[match["kind"]] = path
    if not found:
        raise FileNotFoundError(f"no weights in {folder}: expected diffusion_pytorch_model.safetensors or .bin")
    if "" not in found and len(found) > 1:
        raise ValueError(f"{folder.name} has several variants of the weights, {', '.join(found)}, and no plain one")
    kinds = found.get("", next(iter(found.values())))
    path = kinds.get("safetensors", kinds.get("bin"))
    assert path is not None
    shards = _shards(path) if path.suffix == ".json" else [path]
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"no {shard.name} in {shard.parent}, which {path.name} names")
        try:
            arrays |= files.read_state_dict(shard)
        except ValueError as error:
            raise ValueError(f"{folder.name}/{shard.name}: {error}") from error
    return arrays


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names, all of them in its own folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index.name} has no weight_map")
    shards = sorted({str(name) for name in names.values()})
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{index.name} names a file outside its folder: {shard}")
    return [index.parent / shard for shard in shards]


def _scheduler(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's configuration: in its own folder, beside the index, or given.

    It may have settings of other classes than its own, as diffusers writes them when one scheduler is made from
    another, and ignores them.
    """
    places = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    path = next((path for path in places if path.is_file()), None)
    if path is None and "scheduler" not in config:
        raise FileNotFoundError(
            f"no scheduler_config.json in {folder}, and without it nobody knows the schedule: give one as "
            "config={'scheduler': {'_class_name': 'DDPMScheduler', ...}}"
        )
    if path is not None and "scheduler" in config:
        raise ValueError(f"a scheduler was given, and the folder has its own: {path.relative_to(folder)}")
    found = dict(config["scheduler"]) if path is None else read_json(path)
    name = found.get("_class_name")
    _, known = choose("scheduler class", name if isinstance(name, str) else repr(name), CLASSES)
    _check_kinds("scheduler_config.json", found, known)
    if "beta_start" not in known:
        raise ValueError(f"{name} has no betas, and networks here are loaded with their schedule")
    elsewhere = {setting for _, settings in CLASSES.values() for setting in settings}
    for setting, value in found.items():
        if not setting.startswith("_") and setting not in elsewhere and value is not None:
            raise unknown(f"setting of {name}", setting, known)
    return found


def _shape_and_variance(
    settings: Mapping[str, Any], is_dit: bool, scheduler: Mapping[str, Any]
) -> tuple[tuple[int, int], int, str]:
    """((H, W), channels) of what the network denoises, and the variance it learned or its scheduler has."""
    size = settings["sample_size"]
    sizes = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sizes) != 2:
        raise ValueError(f"config.json must give sample_size, one integer or two, got {size!r}")
    inputs, outputs = settings["in_channels"], settings["out_channels"]
    outputs = inputs if outputs is None else outputs
    said = scheduler.get("variance_type")
    if said == "learned":
        raise ValueError("variance_type 'learned' is the variance itself there, and its logarithm here: not loaded")
    if said == "learned_range" or (is_dit and outputs == 2 * inputs):
        if outputs % 2:
            raise ValueError(f"variance_type {said!r} needs two outputs for each channel, got out_channels {outputs}")
        # DiT's second half is that of learned_range, which its pipeline drops.
        return (sizes[0], sizes[1]), outputs // 2, "learned_range"
    if outputs > inputs:
        raise ValueError(
            f"out_channels {outputs} exceed in_channels {inputs}, and variance_type {said!r} is not learned"
        )
    return (sizes[0], sizes[1]), outputs, "fixed_large" if said == "fixed_large" else "fixed_small"


def _clip(settings: Mapping[str, Any]) -> float | None:
    if settings["_class_name"] in NO_CLIPPING or not settings.get("clip_sample", False):
        return None
    return settings.get("clip_sample_range", 1.0)
