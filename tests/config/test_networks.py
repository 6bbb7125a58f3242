"""`model:` is one of several networks: its tag in JSON, what follows from the images, what a run of before says."""

import json
from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax import build
from ddpm_jax.cli.train import TrainArguments
from ddpm_jax.config.defaults import described, resolved
from ddpm_jax.config.networks import NETWORKS, ClassifierConfig, UNetConfig, network
from ddpm_jax.config.networks.transformers import DiTConfig, UViTConfig, heads, patch_size
from ddpm_jax.config.run import Config, ObjectiveConfig, differences, from_dict, to_dict
from ddpm_jax.interop import openai
from ddpm_jax.runs import checkpoint
from ddpm_jax.tools.plan.command import PlanArguments

# config.json as 2e4a8eb wrote it, where every network was a U-Net.
BEFORE = """{"config": {
 "data": {"name": "digits", "dir": null, "split": "train", "image_size": null, "flip": false},
 "schedule": {"name": "linear", "num_timesteps": 1000, "arguments": {}},
 "model": {"channels": 16, "channel_multipliers": [1, 2], "num_res_blocks": 1, "attention_resolutions": [4],
  "dropout": 0.0, "num_groups": 8, "norm_eps": 1e-06, "num_heads": 1, "num_head_channels": null,
  "scale_shift_norm": false, "downsample": "conv", "downsample_padding": 0, "upsample": "conv",
  "time_cosine_first": false, "time_endpoint": true, "remat": false, "remat_policy": "nothing", "dtype": "float32"},
 "objective": {"loss": "simple", "prediction": "eps", "variance": "fixed_large", "vlb_weight": null,
  "weighting": "uniform", "weighting_arguments": {}, "timesteps": "uniform", "timesteps_arguments": {},
  "sigma_data": null},
 "optimizer": {"learning_rate": 0.006, "warmup_steps": 100, "decay_steps": 6000, "beta1": 0.9, "beta2": 0.999,
  "clip_norm": 1.0, "ema_decay": 0.995, "ema_decays": [], "ema_sigmas": []},
 "sample": {"sampler": "ddim", "num_steps": 50, "num_images": 64, "clip": 1.0},
 "train": {"num_steps": 6000, "batch_size": 64, "accumulate": 1, "steps_per_call": 1, "non_finite": "stop",
  "max_skipped": 100, "seed": 0, "log_every": 20, "checkpoint_every": 1000, "checkpoint_minutes": null,
  "keep_checkpoints": 3, "average_every": null, "sample_every": 500},
 "parallel": {"mesh": {}}}, "image_shape": [8, 8, 1], "num_examples": 1797}"""
KINDS = [DiTConfig, UViTConfig]


def test_a_run_of_before_is_that_of_the_same_command_now(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(BEFORE)
    info = checkpoint.load_run(tmp_path / "run")
    assert type(info.config.model) is UNetConfig and info.config == resolved(Config(), (8, 8, 1))
    checkpoint.open_run(tmp_path / "run", checkpoint.RunInfo(Config(), (8, 8, 1), 1797))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["model"]["name"] == "unet"
    with pytest.raises(ValueError, match=r"another configuration \(model: 'unet', now 'dit'"):
        checkpoint.open_run(tmp_path / "run", checkpoint.RunInfo(Config(model=DiTConfig()), (8, 8, 1), 1797))


def test_commands_offer_the_networks_that_there_are():
    for arguments in (TrainArguments, PlanArguments):
        assert get_args(arguments.__annotations__["model"]) == tuple(NETWORKS)


@pytest.mark.parametrize("kind", KINDS)
def test_json_says_which(kind):
    config = Config(model=kind(depth=3, dtype="bfloat16"))
    values = json.loads(json.dumps(to_dict(config)))
    assert values["model"]["name"] == kind.name and from_dict(values, Config) == config
    assert differences(config, replace(config, model=kind(depth=3, dtype="bfloat16", remat=True))) == []
    for change, message in (
        ({"channels": 3}, rf"unknown setting of model {kind.name} 'channels' \(known: width, depth, "),
        ({"name": "dot"}, "unknown model 'dot'; did you mean 'dit'"),
        ({"name": ["dit"]}, "unknown model"),
        ({"width": 0}, r"model\.width must be at least 1, got 0"),
        ({"mlp_ratio": 0.0}, r"model\.mlp_ratio must lie in \(0, 1024\], got 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict({**values, "model": values["model"] | change}, Config)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((8, 8, 1), (4, 1)), ((8, 16, 1), (4, 1)), ((6, 6, 1), (3, 1)), ((1, 1, 1), (1, 1)), ((28, 28, 1), (2, 1)),
        ((32, 32, 3), (2, 1)), ((64, 96, 3), (8, 1)),
        ((15, 21, 3), (3, 1)), ((51, 64, 3), (1, 51 * 64)), ((256, 256, 3), (16, 1)),
    ],
)  # fmt: skip
def test_patches_are_small_but_few(shape, expected):
    size, slow_places = expected
    assert patch_size(shape) == size
    for kind in KINDS:
        config = resolved(Config(model=kind()), shape)
        assert ("slow, as it attends among 51 x 64" in described(config, shape, 1)) == (slow_places > network.ATTENDED)
        assert resolved(config, (4, 4, 3)) == config


@pytest.mark.parametrize(
    "given, shape, expected",
    [
        ({}, (8, 8, 1), (16, (1, 2), (4,), 8, 16)),
        ({"channels": 24}, (8, 8, 1), (24, (1, 2), (4,), 8, 24)),
        ({"channels": 24, "channel_multipliers": (1, 3)}, (32, 32, 3), (24, (1, 3), (16,), 12, 24)),
        ({}, (64, 64, 3), (64, (1, 1, 2, 2, 4), (16,), 32, 64)),
        ({"channels": 192}, (64, 64, 3), (192, (1, 1, 2, 2, 4), (16,), 32, 64)),
        ({"num_heads": 2, "pool": "adaptive"}, (8, 8, 1), (16, (1, 2), (4,), 8, None)),
    ],
)
def test_the_classifier_of_a_size(given, shape, expected):
    """ADM's where it says nothing of the size."""
    config = resolved(Config(task="classifier", model=ClassifierConfig(**given)), shape)
    names = ("channels", "channel_multipliers", "attention_resolutions", "num_groups", "num_head_channels")
    assert tuple(getattr(config.model, name) for name in names) == expected
    assert isinstance(config.model, ClassifierConfig)
    assert resolved(config, (4, 4, 3)) == config
    assert config.optimizer.learning_rate == (2e-3 if shape[0] == 8 else 3e-4)
    model = build.make_model(config, shape, tuple("abcdefg"))
    like_adm = openai.classifier_from_config(
        {"in_channels": 3, "model_channels": 32, "out_channels": 7, "num_res_blocks": 1, "attention_resolutions": (2,)}
        | {"num_head_channels": 16, "use_scale_shift_norm": True, "resblock_updown": True, "pool": model.pool}
    )
    sizes = ("channels", "channel_multipliers", "attention_resolutions", "attention_factors", "num_groups",
             "num_heads", "num_head_channels")  # fmt: skip
    same = [name for name in vars(like_adm) if name not in (*sizes, "parent", "name") and not name.startswith("_")]
    assert len(same) > 12 and [getattr(model, name) for name in same] == [getattr(like_adm, name) for name in same]


def test_a_classifier_without_classes_is_not_built():
    with pytest.raises(ValueError, match=r"--task classifier learns labels, and these data have none"):
        build.make_model(Config(task="classifier", model=ClassifierConfig()), (8, 8, 1))


def test_settings_reach_the_classifier():
    """Every setting; what each does there is the business of tests/models and tests/interop."""
    values = {"channels": 8, "channel_multipliers": (1, 1), "num_res_blocks": 2, "attention_resolutions": (8,),
              "dropout": 0.5, "num_groups": 4, "norm_eps": 1e-3, "num_heads": 2, "scale_shift_norm": False,
              "downsample": "conv", "downsample_padding": 0, "time_cosine_first": False, "time_endpoint": True,
              "pool": "adaptive", "remat": True, "remat_policy": "products"}  # fmt: skip
    given = ClassifierConfig(dtype="bfloat16", **values)
    model = build.make_model(Config(task="classifier", model=given), (8, 8, 1), tuple("abcd"))
    assert {name: getattr(model, name) for name in values} == values
    assert (model.out_channels, model.dtype, model.num_head_channels) == (4, jnp.dtype("bfloat16"), None)
    assert not any(value == vars(ClassifierConfig())[name] for name, value in values.items())
    heads = replace(given, num_heads=1, num_head_channels=2)
    assert build.make_model(Config(task="classifier", model=heads), (8, 8, 1), ("a", "b")).num_head_channels == 2
    assert {*values, "num_head_channels", "dtype"} == set(vars(given))


def test_heads_divide_the_width():
    assert [heads(width, 64) for width in (384, 512, 192, 100, 32)] == [6, 8, 3, 1, 1]
    assert [heads(width, 16) for width in (64, 72, 96)] == [4, 4, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_reach_the_network(kind):
    """Every setting, changed, makes another network; the learned variance twice the channels."""
    changes = {"width": 24, "depth": 3, "num_heads": 1, "patch_size": 4, "mlp_ratio": 2.0, "remat": True,
               "dtype": "bfloat16", "qkv_bias": True, "time_mlp": True, "final_conv": False}  # fmt: skip
    small = kind(width=16, depth=1, num_heads=2, patch_size=2)
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,))

    def program(config: Config) -> str:
        model = build.make_model(config, (8, 8, 1))
        value = lambda key: jnp.sum(model.apply(model.init(key, x, t), x, t, train=True, dropout_keys=None))
        return str(jax.make_jaxpr(lambda key: jax.value_and_grad(lambda x: value(key) * x)(1.0))(jax.random.key(0)))

    names = [name for name in vars(small) if name != "remat"]  # its effect: tests/models
    programs = [program(Config(model=replace(small, **{name: changes[name]}))) for name in names]
    assert len({program(Config(model=small)), *programs}) == 1 + len(names)
    assert build.make_model(Config(model=replace(small, remat=True)), (8, 8, 1)).remat  # pyright: ignore
    learned = Config(model=small, objective=ObjectiveConfig(loss="hybrid", variance="learned_range"))
    model = build.make_model(learned, (8, 8, 3))
    out = jax.eval_shape(
        lambda key: model.init_with_output(key, jnp.zeros((2, 8, 8, 3)), jnp.zeros(2))[0], jax.random.key(0)
    )
    assert out.shape == (2, 8, 8, 6)
