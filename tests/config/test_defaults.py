"""What a configuration leaves to the images."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.cli.parsing import parse
from ddpm_jax.cli.train import TrainArguments
from ddpm_jax.config.defaults import described, resolved
from ddpm_jax.config.run import Config, ModelConfig, OptimizerConfig, differences, to_dict
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import loop

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
DIGITS = ModelConfig(channels=16, channel_multipliers=(1, 2), attention_resolutions=(4,), num_groups=8)
"""What every configuration had before networks followed from the images."""
SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "downsampled_imagenet/64x64": (64, 64, 3),
    "imagenet2012": (256, 256, 3),
    "runs/autoencoder_emoji/latents": (16, 16, 4),
    "runs/autoencoder_cifar10/latents": (16, 16, 4),
}


def model(*settings):
    return ModelConfig(**dict(zip(("channels", "channel_multipliers", "attention_resolutions", "num_groups"), settings,
                                  strict=True)))  # fmt: skip


@pytest.mark.parametrize(
    "shape, expected, rate",
    [
        ((8, 8, 1), DIGITS, 6e-3),
        ((4, 4, 3), DIGITS, 6e-3),
        ((8, 16, 3), DIGITS, 6e-3),
        ((1, 1, 1), model(16, (1,), (1,), 8), 6e-3),
        ((12, 12, 1), model(32, (1, 2), (6,), 16), 2e-4),
        ((15, 21, 3), model(32, (1,), (), 16), 2e-4),
        ((28, 28, 1), model(32, (1, 2, 2), (14,), 16), 2e-4),
        ((30, 30, 3), model(64, (1, 2), (15,), 32), 2e-4),
        ((32, 32, 3), model(64, (1, 2, 2, 2), (16,), 32), 2e-4),
        ((32, 256, 3), model(64, (1, 2, 2, 2), (4,), 32), 2e-4),
        ((50, 50, 3), model(64, (1, 2), (), 32), 2e-4),
        ((64, 96, 3), model(64, (1, 1, 2, 2, 4), (8,), 32), 2e-4),
        ((51, 64, 4), model(64, (1,), (), 32), 2e-4),
        ((256, 256, 3), model(64, (1, 1, 2, 2, 4, 4), (16,), 32), 2e-4),
    ],
)
def test_the_network_of_a_size(shape, expected, rate):
    found = resolved(Config(), shape)
    assert found == Config(model=expected, optimizer=OptimizerConfig(learning_rate=rate))
    assert resolved(found, (64, 64, 3)) == found
    built = build.make_model(Config(), shape)  # traces it: all its checks
    assert (built.channels, built.num_groups) == (expected.channels, expected.num_groups)


@pytest.mark.parametrize(
    "given, shape, expected",
    [
        ({"channels": 24}, (32, 32, 3), model(24, (1, 2, 2, 2), (16,), 12)),
        ({"channels": 5}, (32, 32, 3), model(5, (1, 2, 2, 2), (16,), 1)),
        ({"channels": 128, "channel_multipliers": (1, 3)}, (32, 32, 3), model(128, (1, 3), (16,), 32)),
        ({"channel_multipliers": (1, 2, 2)}, (8, 8, 1), model(16, (1, 2, 2), (4,), 8)),
        ({"channel_multipliers": (1,)}, (8, 8, 1), model(16, (1,), (8,), 8)),
        ({"channels": 40}, (8, 8, 1), model(40, (1, 2), (4,), 8)),
        ({"attention_resolutions": ()}, (32, 32, 3), model(64, (1, 2, 2, 2), (), 32)),
    ],
)
def test_what_is_given_stays_and_the_rest_follows_from_it_too(given, shape, expected):
    config = Config(model=ModelConfig(**given), optimizer=OptimizerConfig(learning_rate=1e-3))
    assert resolved(config, shape) == replace(config, model=expected)
    build.make_model(config, shape)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_experiments_train_what_they_did(path):
    """Those of other images than the digits leave nothing to them."""
    if "\nconfig = " not in path.read_text():
        pytest.skip("no configuration")
    found = runpy.run_path(str(path))
    if not isinstance(found["config"].model, ModelConfig):
        pytest.skip("its network is newer than these defaults")
    for config in (found["config"], found.get("smoke", found["config"])):
        old = {name: getattr(DIGITS, name) if value is None else value for name, value in vars(config.model).items()}
        rate = 6e-3 if config.optimizer.learning_rate is None else config.optimizer.learning_rate
        others = {"optimizer": replace(config.optimizer, learning_rate=rate), "condition": config.condition.resolved()}
        expected = replace(config, model=ModelConfig(**old), **others)
        assert differences(expected, resolved(config, SHAPES[config.data.name])) == []


def entered(workdir, config) -> list[str]:
    """What is said when a run of this configuration begins or goes on; nothing is trained."""
    said: list[str] = []
    report = type("Report", (), {"say": staticmethod(said.append)})
    with loop.entered(loop.prepare(config), workdir, report):  # type: ignore[reportArgumentType]
        pass
    return said


def test_a_run_says_and_keeps_its_network(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.random.RandomState(0).randint(0, 256, (8, 12, 12, 3), np.uint8))
    config = replace(Config(), data=replace(Config().data, name=str(path)))
    (said,) = entered(tmp_path / "run", config)
    assert said == (
        "network of 702,499 parameters for images of 12 x 12 x 3: --model.channels 32 --model.channel-multipliers 1 2 "
        "--model.num-res-blocks 1 --model.attention-resolutions 6 --model.num-groups 16 "
        "--optimizer.learning-rate 0.0002"
    )
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert stored == json.loads(json.dumps(to_dict(resolved(config, (12, 12, 3)))))
    # The line is the options that give this network, and what is stored is what a later start compares with.
    options = [str(word) for word in said.partition("3: ")[2].split()]
    again = parse(TrainArguments, options, "train", TrainArguments(config)).config
    assert again == resolved(config, (12, 12, 3)) and entered(tmp_path / "run", again) == []
    assert entered(tmp_path / "run", config) == []
    with pytest.raises(ValueError, match=r"model\.channels: 32, now 16"):
        entered(tmp_path / "run", replace(config, model=ModelConfig(channels=16)))


def test_a_directory_of_before_is_the_run_of_what_it_says(tmp_path):
    """All settings written out, among them some that are no longer any size's."""
    (tmp_path / "run").mkdir()
    values = to_dict(Config(model=model(24, (1, 3), (6,), 4), optimizer=OptimizerConfig(learning_rate=6e-3)))
    text = json.dumps({"config": values, "image_shape": [12, 12, 3], "num_examples": 8})
    (tmp_path / "run" / "config.json").write_text(text)
    found = checkpoint.load_run(tmp_path / "run")
    assert to_dict(found.config) == values
    checkpoint.open_run(tmp_path / "run", found)
    added = {"fingerprint": {}, "classes": None, "networks": {}}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == json.loads(text) | added
    with pytest.raises(ValueError, match=r"model\.channels: 24, now 32"):
        checkpoint.open_run(tmp_path / "run", checkpoint.RunInfo(Config(), (12, 12, 3), 8))


def test_a_size_that_hardly_halves_is_said_to_be_slow():
    shape = (50, 50, 3)
    assert "its middle attends among 25 x 25: --data.image-size" in described(resolved(Config(), shape), shape, 1)
    assert "slow" not in described(resolved(Config(), (32, 32, 3)), (32, 32, 3), 1)


def test_a_rate_that_nothing_gave_is_not_trained_with():
    with pytest.raises(ValueError, match=r"learning_rate is None, .* config\.defaults\.resolved"):
        loop.state.make_optimizer(OptimizerConfig())
