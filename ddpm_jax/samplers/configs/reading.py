"""What a scheduler_config.json says: of which class, which of its settings, of the right kinds, under today's names.

Files have more in them than their class reads. Where diffusers makes one scheduler from another it writes the settings
of both, and its releases of 2022 wrote settings that are gone. Facts about diffusers 0.42.1 only: no code of it.
"""

import json
import sys
from collections.abc import Callable, Mapping
from math import isinf
from pathlib import Path
from typing import Any

from ddpm_jax.host import lfs
from ddpm_jax.names import choose, unknown
from ddpm_jax.samplers.configs import dpm, exploding, flax_classes, markov, sigma
from ddpm_jax.samplers.configs.common import BETA_SCHEDULES, Preset

# Name of the class: (function, what its configuration may say and means where it does not).
CLASSES: dict[str, tuple[Callable[..., Preset], Mapping[str, Any]]] = {
    **markov.CLASSES,
    **sigma.CLASSES,
    **dpm.CLASSES,
    **exploding.CLASSES,
}

# Settings of the classes of 0.42.1 that are not here, which change nothing in those that are.
ELSEWHERE = frozenset(
    "alpha_cum_end alpha_cum_start base_image_seq_len base_shift beta_max beta_min block_length"
    " corrector_k corrector_selection corrector_selection_tau corrector_steps editing_threshold"
    " entropy_bound eps final_step_size_scale gamma gamma_cum_end gamma_cum_start invert_sigmas mask_token_id"
    " masking_schedule max_image_seq_len max_shift minimal_topk n_grid noise_mode num_inference_steps"
    " num_policy_substeps num_vec_classes s s_churn s_max s_min scale_factors scaler"
    " schedule_mode scheduler_type shift snr_shift_scale stage_range stages stochastic_sampling t_lim_ode"
    " t_lim_ode_below t_max t_min tail_step_multiplier tail_steps threshold tsr_k tsr_sigma upscale_mode".split()
)
# Of 2022: what says nothing about the steps, and what has another name now.
GONE = frozenset(("tensor_format", "timestep_values", "denoise_final"))
RENAMED = {"timesteps": "num_train_timesteps", "clip_predicted_image": "clip_sample"}
PREDICT_EPSILON = {True: "epsilon", False: "sample"}
# What some classes have beside the beta schedules of all, and what another has in place of them.
ONLY_SCHEDULES = {"UnCLIPScheduler": ("squaredcos_cap_v2",)}
MORE_SCHEDULES = {
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler"), ("laplace", "sigmoid")),
    "RePaintScheduler": ("sigmoid",),
    "HeunDiscreteScheduler": ("exp",),
}
# Read only where another setting is true, and so possibly null where it is not.
READ_WITH = {
    **dict.fromkeys(("dynamic_thresholding_ratio", "sample_max_value"), "thresholding"),
    "clip_sample_range": "clip_sample",
}
# What settings are like whose default is null, where they are not null.
WHERE_NOT_NULL = {
    **dict.fromkeys(("sigma_min", "sigma_max", "shift_terminal"), 0.1),
    **{"variance_type": "fixed_small", "trained_betas": (0.1,), "set_alpha_to_zero": True},
}
ALSO_ZERO = ("correct_steps",)  # counts that may be 0 though their default is above
MOST = 2**24  # of any count: larger ones are mistakes, and take forever


def read(config: Mapping[str, Any] | str | Path) -> tuple[str, dict[str, Any]]:
    """The class of a configuration, and those of the class's settings that it says.

    What is left out changes nothing: settings of other classes, those that are gone, null ones that nobody knows, and
    names that begin with "_".

    Args:
      config: scheduler_config.json, its path, or its folder.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no JSON; an unknown class; a setting that no class knows, or of another kind than its default.
    """
    if isinstance(config, str | Path):
        config = read_file(config)
    if not isinstance(config, Mapping):
        raise ValueError(f"a scheduler's configuration is a mapping, its file or its folder, got {config!r}")
    if "_class_name" not in config:
        raise ValueError(f"the configuration must have _class_name, one of {', '.join(CLASSES)}")
    config = flax_classes.as_pytorch(config, CLASSES)
    name = config["_class_name"]
    _, defaults = choose("scheduler class", name if isinstance(name, str) else repr(name), CLASSES)
    # In memory diffusers lists what was left at the defaults of another class: those do not pass on to this one.
    skipped = config.get("_use_default_values")
    skipped = skipped if isinstance(skipped, list | tuple) else ()
    named = {key: value for key, value in config.items() if not key.startswith("_") and key not in skipped}
    given = _renamed(named, defaults)
    everywhere = ELSEWHERE.union(GONE, *(settings for _, settings in CLASSES.values()))
    for key, value in given.items():
        if key not in defaults and key not in everywhere and value is not None:
            raise unknown(f"setting of {name}", key, defaults)
    found = {key: value for key, value in given.items() if key in defaults}
    found = {key: plain(value, defaults[key]) for key, value in found.items() if not _idle(key, value, found, defaults)}
    check_kinds({k: v for k, v in found.items() if not (k in ALSO_ZERO and v == 0)}, defaults, WHERE_NOT_NULL)
    schedules = ONLY_SCHEDULES.get(name, (*BETA_SCHEDULES, *MORE_SCHEDULES.get(name, ())))
    if found.get("trained_betas") is None and found.get("beta_schedule", schedules[0]) not in schedules:
        raise unknown("beta_schedule", found["beta_schedule"], schedules)
    if name == "EulerDiscreteScheduler" and found.get("prediction_type") == "original_sample":  # its old word
        found["prediction_type"] = "sample"
    return name, found


def read_file(place: str | Path) -> dict[str, Any]:
    """scheduler_config.json as a mapping, from its path or its folder.

    Raises:
      FileNotFoundError, ValueError: as read_json.
    """
    path = Path(place)
    return read_json(path / "scheduler_config.json" if path.is_dir() else path)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or no mapping; a pointer of git-lfs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    refuse_pointer(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} must hold a mapping, got {type(found).__name__}")
    return found


def refuse_pointer(path: Path) -> None:
    """Of a repository that was cloned without git-lfs.

    Raises:
      ValueError: the file only says where the real one is.
    """
    if lfs.is_pointer(path):
        raise ValueError(
            f"{path.name} is a pointer of git-lfs, not the file itself: install git-lfs and run `git lfs pull` in "
            f"{path.parent}"
        )


def _renamed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Under today's names; those win where a file has both.

    Raises:
      ValueError: predict_epsilon is neither true nor false.
    """
    found = dict(config)
    for old, new in RENAMED.items():
        value = found.pop(old, None)
        if value is not None and new in defaults:
            found.setdefault(new, value)
    value = found.pop("predict_epsilon", None)
    if value is not None and "prediction_type" in defaults:
        if not isinstance(value, bool):
            raise ValueError(f"predict_epsilon must be true or false, got {value!r}")
        found.setdefault("prediction_type", PREDICT_EPSILON[value])
    return found


def _idle(key: str, value: Any, found: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether it is null, and the others say that nobody reads it."""
    if value is not None or defaults[key] is None:
        return False
    if key in READ_WITH:
        return not found.get(READ_WITH[key], defaults[READ_WITH[key]])
    if key in ("beta_start", "beta_end", "beta_schedule"):
        return found.get("trained_betas") is not None
    return key == "variance_type"  # anything but the names that the class knows is fixed_small to it


def plain(value: Any, default: Any) -> Any:
    """The value as its default is written: arrays as lists, null, 0 and 1 as truths, infinities as numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(default, bool) and (value is None or (isinstance(value, int) and value in (0, 1))):
        return bool(value)
    if _infinite(default) and isinstance(value, str) and value.lstrip("+-").lower() in ("inf", "infinity"):
        return float(value)
    return value


def check_kinds(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], where_not_null: Mapping[str, Any], lists: Any = ()
) -> None:
    """Whether every setting is of the kind its default is: a number, a word, a list of those.

    Args:
      settings: what is said.
      defaults: by name; others are not looked at.
      where_not_null: what those are like whose default is null.
      lists: names of those that may be a list instead of one.

    Raises:
      ValueError: one is not.
    """
    for name, value in settings.items():
        default = defaults.get(name)
        like = where_not_null.get(name) if default is None else default
        if like is None or (value is None and default is None):
            continue
        if not fits(value, like, may_be_list=name in lists):
            raise ValueError(f"{name} must be {_words(like, name in lists)}, got {value!r}")


def _words(like: Any, may_be_list: bool) -> str:
    """What `fits` allows."""
    if isinstance(like, tuple):
        return f"a list, each {_words(like[0] if like else 0, False)}"
    if isinstance(like, bool):
        said = "true or false"
    elif isinstance(like, int):
        said = f"a whole number in [{min(like, 1)}, {MOST}]"
    else:
        said = "text" if isinstance(like, str) else "a finite number" + (f" or {like}" if _infinite(like) else "")
    return f"{said}, or a list of such" if may_be_list else said


def fits(value: Any, default: Any, *, may_be_list: bool = False) -> bool:
    """Whether a value is of the kind of a default, and one that a computer can work with."""
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    if isinstance(value, list | tuple) and (isinstance(default, tuple) or may_be_list):
        element = 1 if not isinstance(default, tuple) else default[0] if default else 0
        return all(fits(item, element) for item in value)
    if isinstance(default, tuple) or isinstance(value, bool):
        return False
    if isinstance(default, int):  # a count; where 0 is a default, 0 is a value
        return isinstance(value, int) and min(default, 1) <= value <= MOST
    # No comparison holds for NaN; and infinity is a value where it is the default.
    return isinstance(value, int | float) and (abs(value) <= sys.float_info.max or value == default)


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and isinf(value)
