"""Configurations: every field with values of wrong types, out of range, huge, not finite, contradicting each other."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from ddpm_jax import data
from ddpm_jax.config.run import Config, differences, flatten, from_dict, to_dict
from ddpm_jax.data.records import from_arrays
from ddpm_jax.samplers.catalogue import CATALOGUE
from ddpm_jax.schedules import BY_NAME as SCHEDULES
from ddpm_jax.timesteps import BY_NAME as TIMESTEPS
from ddpm_jax.train import loop
from ddpm_jax.weightings import BY_NAME as WEIGHTINGS
from tests.fuzz.common import FLOATS, JSON, TEXTS, WHOLE, WRONG, fuzz, refused, sizes

SMALL = {
    "data": {"name": "digits"},
    "schedule": {"num_timesteps": 8},
    "model": {"channels": 4, "channel_multipliers": [1], "attention_resolutions": [], "num_groups": 2},
    "sample": {"num_steps": 2, "num_images": 4},
    "train": {"num_steps": 4, "batch_size": 8},
}
FIELDS = sorted(flatten(Config()))
OTHER_NAMES = (
    "eps x_0 v x_prev score learned learned_range fixed_small vlb hybrid simple edm bfloat16 resblock pool nearest"
)
NAMES = [*SCHEDULES, *TIMESTEPS, *WEIGHTINGS, *CATALOGUE, *OTHER_NAMES.split()]
ARGUMENTS = (
    "beta_start beta_end s max_beta tau start end fraction gamma k bias sigma_data history uniform_share mean std"
).split()
VALUES = st.one_of(
    JSON,
    WHOLE,
    FLOATS,
    TEXTS,
    st.sampled_from(NAMES),
    st.lists(WHOLE, max_size=3),
    st.dictionaries(st.sampled_from(ARGUMENTS), st.one_of(WHOLE, FLOATS, st.none()), min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["data", "fsdp", "model"]), WHOLE, min_size=1, max_size=2),
)
# What a message may call a field whose own name says less.
ALSO = {
    "data.name": ("data set", "image", "no such"),
    "schedule.name": ("schedule", "betas", "prediction"),
    "schedule.num_timesteps": ("betas", "num_steps", "schedule"),
    "schedule.arguments": ("beta", "schedule", "argument", *ARGUMENTS),
    "model.channels": ("channels",),
    "model.channel_multipliers": ("channels", "H and W"),
    "objective.loss": ("objective.",),
    "objective.weighting_arguments": ("weighting", *ARGUMENTS),
    "objective.timesteps": ("timestep sampler",),
    "objective.timesteps_arguments": ("timestep sampler", *ARGUMENTS),
    "train.batch_size": ("batch size",),
    "parallel.mesh": ("mesh", "devices"),
}


def names_of(fields) -> list[str]:
    """How a message may call these fields: by their names, or by what they set in the objects that are built."""
    sections = [repr(field.split(".")[0]) for field in fields]  # of an unknown one
    return sections + [name for field in fields for name in (field, field.split(".")[-1], *ALSO.get(field, ()))]


def changed(changes: dict) -> dict:
    """The small configuration with these fields changed; a field without a dot is a whole section."""
    values = json.loads(json.dumps(SMALL))
    for field, value in changes.items():
        section, _, name = field.partition(".")
        if not name:
            values[section] = value
        elif isinstance(values.setdefault(section, {}), dict):
            values[section][name] = value
    return values


def changes(values=VALUES):
    """One to three fields, and a value of each; now and then a whole section, or a field that there is not."""
    other = st.sampled_from(["data", "model", "train", "parallel", "modle", "train.seeed", "model.num_classes", "x.y"])
    return st.dictionaries(st.one_of(*[st.sampled_from(FIELDS)] * 5, other), values, min_size=1, max_size=3)


def survives(config: Config) -> None:
    """What is accepted means the same after JSON."""
    assert differences(from_dict(json.loads(json.dumps(to_dict(config))), Config), config) == []


@sizes("dictionaries")
def test_dictionaries(examples):
    def check(example):
        config = refused(lambda: from_dict(changed(example), Config), names_of(example))
        if config is not None:
            survives(config)

    fuzz(examples, changes(), check)


@pytest.mark.parametrize("values", [None, [], [1], "x", 3, {"config": {}}, {"": 1}, {1: 2}, {None: {}}])
def test_no_mapping_of_sections(values):
    with pytest.raises(ValueError, match="not a configuration: "):
        from_dict(values, Config)


@sizes("dataclasses")
def test_dataclasses(examples):
    """Made in Python, as experiments do: nothing is converted, and everything is of its type."""

    def make(example):
        config = Config()
        for field, value in example.items():
            section, _, name = field.partition(".")
            changed = dataclasses.replace(getattr(config, section), **{name: value}) if name else value
            config = dataclasses.replace(config, **{section: changed})
        return config

    def check(example):
        config = refused(lambda: make(example), names_of(example))
        if config is not None:
            survives(config)

    values = st.one_of(WRONG, VALUES, st.lists(WHOLE, max_size=2).map(tuple), st.just(np.int64(3)), st.just(object()))
    fuzz(examples, st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=2), check)


@sizes("prepared")
def test_prepared(examples, tmp_path, monkeypatch):
    """Configurations of valid types: everything that a run is made of is built, or refused by name; nothing is
    written. Not asked is whether the memory suffices."""
    digits = from_arrays("digits", {"image": np.zeros((16, 8, 8, 1), np.uint8)})
    monkeypatch.setattr(data, "load", lambda name, **options: digits)
    monkeypatch.chdir(tmp_path)

    def check(example):
        config = refused(lambda: from_dict(changed(example), Config), names_of(example))
        if config is not None:
            with jax.numpy_dtype_promotion("standard"):  # optax, as in training
                refused(lambda: loop.prepare(config), names_of(example))
        assert not list(tmp_path.iterdir())

    whole = st.one_of(WHOLE, st.integers(-2, 70))
    fields = {
        "schedule.num_timesteps model.channels model.num_res_blocks model.num_groups model.num_heads train.accumulate"
        " model.num_head_channels sample.num_steps train.batch_size train.seed optimizer.warmup_steps": whole,
        "model.channel_multipliers model.attention_resolutions": st.lists(
            st.one_of(WHOLE, st.sampled_from([1, 2, 4, 8])), max_size=3
        ),
        "model.dropout model.norm_eps sample.clip objective.sigma_data objective.vlb_weight optimizer.beta1"
        " optimizer.learning_rate": FLOATS,
        "schedule.name objective.loss objective.prediction objective.variance objective.weighting objective.timesteps"
        " sample.sampler model.downsample": st.sampled_from(NAMES),
        "schedule.arguments objective.weighting_arguments objective.timesteps_arguments": st.dictionaries(
            st.sampled_from(ARGUMENTS), st.one_of(WHOLE, FLOATS), max_size=2
        ),
        "parallel.mesh": st.dictionaries(st.sampled_from(["data", "fsdp"]), st.integers(-1, 5), max_size=2),
    }
    kinds = {field: values for names, values in fields.items() for field in names.split()}
    pairs = st.sampled_from(sorted(kinds)).flatmap(lambda field: st.tuples(st.just(field), kinds[field]))
    # Mostly one field: of several, the first that is refused hides the others.
    several = st.lists(pairs, min_size=2, max_size=3)
    fuzz(examples, st.one_of(pairs.map(lambda pair: [pair]), pairs.map(lambda pair: [pair]), several).map(dict), check)
