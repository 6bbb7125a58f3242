"""Configurations as the installed diffusers writes them, and as its from_config takes them."""

import functools
import inspect
import json

import numpy as np
import pytest

from ddpm_jax.samplers.configs import CLASSES, from_diffusers_config, read
from ddpm_jax.samplers.configs.reading import ELSEWHERE

OF_2022 = {"tensor_format": "pt", "denoise_final": True, "timestep_values": None, "num_inference_steps": 50}


def class_of(theirs, name):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    return getattr(theirs, name)


def defaults_of(cls) -> dict:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("self", "args", "kwargs")}


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_as_it_is_saved(name, theirs, tmp_path):
    """save_config and save_pretrained, infinities and all; and the configuration in memory."""
    said = {"correct_steps": 0} if name == "ScoreSdeVeScheduler" else {}  # no table has its default
    scheduler = class_of(theirs, name)(**said)
    assert defaults_of(type(scheduler)).keys() <= CLASSES[name][1].keys()
    expected = from_diffusers_config({"_class_name": name, **said}, 5).table
    scheduler.save_config(tmp_path / "a")
    scheduler.save_pretrained(tmp_path / "b")
    for config in (tmp_path / "a", tmp_path / "b", dict(scheduler.config) | {"_class_name": name}):
        found = from_diffusers_config(config, 5).table
        for column, other in zip(found.rows, expected.rows, strict=True):
            np.testing.assert_array_equal(column, other)


def test_settings_of_all_other_classes_are_known(theirs):
    found = [getattr(theirs.schedulers, name, None) for name in dir(theirs.schedulers) if name.endswith("Scheduler")]
    classes = [cls for cls in found if cls is not None and "_backends" not in vars(cls)]  # those need other packages
    assert len(classes) > 40
    ours = set().union(*(settings for _, settings in CLASSES.values()))
    assert set().union(*(defaults_of(cls) for cls in classes if hasattr(cls, "from_config"))) - ours <= ELSEWHERE


@pytest.mark.parametrize("name", CLASSES)
def test_one_scheduler_made_from_another(name, theirs):
    """Its settings are those that from_config gives it, of every other class's file; what we refuse it refuses."""
    cls = class_of(theirs, name)
    for other in CLASSES:
        if other == "DPMSolverSDEScheduler":
            continue
        config = json.loads(saved(theirs, other)) | OF_2022 | {"_class_name": name}
        given = cls.extract_init_dict(config)[0]
        try:
            found = {**CLASSES[name][1], **read(config)[1]}
        except ValueError:
            with pytest.raises((TypeError, ValueError)):
                cls(**given)
            continue
        expected = {**defaults_of(cls), **given}
        if expected.get("variance_type", "") is None:  # to DDPM that is fixed_small
            expected["variance_type"] = CLASSES[name][1]["variance_type"]
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
        assert {key: plain[key] for key in expected} == expected


@functools.cache
def saved(theirs, name) -> str:
    return getattr(theirs, name)().to_json_string()


def test_a_scheduler_in_memory_takes_its_own_defaults(theirs):
    """What another class was left at does not pass on; what it was given does."""
    before = theirs.DDIMScheduler(beta_end=0.01, clip_sample=False)
    config = dict(theirs.EulerDiscreteScheduler.from_config(before.config).config)
    made = theirs.DPMSolverMultistepScheduler.from_config(config).config
    found = read(config | {"_class_name": "DPMSolverMultistepScheduler"})[1]
    full = {**CLASSES["DPMSolverMultistepScheduler"][1], **found}
    assert full["beta_end"] == 0.01 and full["timestep_spacing"] == "linspace"
    assert all(made[key] == value for key, value in full.items())
