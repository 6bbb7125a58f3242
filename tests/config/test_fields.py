"""Sections by themselves: each refuses its own bad values, and says which of its fields may change in a run."""

import dataclasses

import pytest

from ddpm_jax.config.fields import FREE
from ddpm_jax.config.run import Config, ObjectiveConfig, OptimizerConfig, SampleConfig, TrainConfig


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (TrainConfig, {"num_steps": -1}, r"train\.num_steps must be at least 1, got -1"),
        (TrainConfig, {"seed": 2**32}, r"train\.seed must be at most 4294967295, got 4294967296"),
        (TrainConfig, {"average_every": 0}, r"train\.average_every must be at least 1, got 0"),
        (TrainConfig, {"checkpoint_minutes": 0.0}, r"train\.checkpoint_minutes must be positive, got 0\.0"),
        (TrainConfig, {"steps_per_call": 3}, r"train\.log_every must be a multiple of .*, got 20 and 3"),
        (SampleConfig, {"num_images": 0}, r"sample\.num_images must be at least 1, got 0"),
        (OptimizerConfig, {"beta2": 1.0}, r"optimizer\.beta2 must lie in \[0, 1\), got 1\.0"),
        (OptimizerConfig, {"clip_norm": 0.0}, r"optimizer\.clip_norm must be positive, got 0\.0"),
        (OptimizerConfig, {"decay_steps": 50}, r"optimizer\.warmup_steps must be below .*, got 100 and 50"),
        (OptimizerConfig, {"ema_sigmas": (0.05, 0.05)}, r"optimizer\.ema_sigmas must be different numbers"),
        (OptimizerConfig, {"weight_decay": 0.1}, r"optimizer\.weight_decay .* 'adamw', got 0\.1 with 'adam'"),
        (OptimizerConfig, {"name": "adamw", "weight_decay": -0.1}, r"optimizer\.weight_decay must not be negative"),
        (OptimizerConfig, {"decay": "linear", "decay_steps": None}, r"optimizer\.decay is for optimizer\.decay_steps"),
        (OptimizerConfig, {"end_rate": 1e-5, "decay_steps": None}, r"optimizer\.end_rate is for .*decay_steps"),
        (OptimizerConfig, {"end_rate": 1e-2, "learning_rate": 1e-3}, r"optimizer\.end_rate .*, got 0\.01 and 0\.001"),
    ],
)
def test_a_section_refuses_its_own(section, values, message):
    with pytest.raises(ValueError, match=message):
        section(**values)


def free(section, prefix=""):
    for item in dataclasses.fields(section):
        if item.metadata == FREE:
            yield prefix + item.name
        elif dataclasses.is_dataclass(value := getattr(section, item.name)):
            yield from free(value, f"{prefix}{item.name}.")


def test_what_may_change_when_a_run_is_continued():
    """Those of before this was said beside the fields: to add one is a promise about every step."""
    assert set(free(Config())) == {
        "data.dir", "data.encode_with", "sample", "train.num_steps", "train.log_every", "train.checkpoint_every",
        "train.checkpoint_minutes", "train.keep_checkpoints", "train.average_every", "train.sample_every",
        "train.accumulate", "train.steps_per_call", "train.non_finite", "train.max_skipped", "model.remat",
        "model.remat_policy", "parallel", "evaluate",
    }  # fmt: skip


@pytest.mark.parametrize("setting", [{"weighting": "snr"}, {"weighting_arguments": {"gamma": 5.0}}])
@pytest.mark.parametrize("loss", ["vlb", "edm"])
def test_a_loss_that_weighs_no_t_takes_no_weighting(loss, setting):
    with pytest.raises(ValueError, match=rf"objective.{next(iter(setting))} .* .simple., got .*{loss}"):
        ObjectiveConfig(loss=loss, **setting)
