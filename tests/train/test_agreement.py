"""What the processes of a run must have alike."""

import dataclasses
from pathlib import Path

import pytest

from ddpm_jax.config.run import Config, DataConfig, DiTConfig, OptimizerConfig
from ddpm_jax.host.processes import disagreement
from ddpm_jax.train import agreement

CONFIG = Config()


def told(config=CONFIG, workdir="runs/digits"):
    return agreement.told(config, Path(workdir))


def test_the_same_runs():
    elsewhere = dataclasses.replace(CONFIG, data=DataConfig(dir="/elsewhere"))
    assert disagreement([told(), told(), told(elsewhere)]) is None
    assert told() == told(workdir=Path("runs/digits").absolute())


@pytest.mark.parametrize(
    "theirs, message",
    [
        (
            told(dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=0.5))),
            "process 2 has --optimizer.learning-rate 0.5 where process 0 has none",
        ),
        (
            told(dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, num_steps=20, log_every=2))),
            "process 2 has --train.num-steps 20 where process 0 has 6000; --train.log-every 2 where process 0 has ",
        ),
        (told(workdir="/tmp/run"), "process 2 has --workdir /tmp/run where process 0 has /"),
        (told() | {"the code of ddpm_jax": "1234"}, "process 2 has the code of ddpm_jax 1234 where process 0 has "),
        (told() | {"jax": "0.9"}, "process 2 has jax 0.9 where process 0 has nothing: they must be the same"),
        (
            told(dataclasses.replace(CONFIG, model=DiTConfig())),
            "process 2 has --model dit where process 0 has unet",
        ),
    ],
)
def test_what_differs(theirs, message):
    found = disagreement([told(), told(), theirs])
    assert found is not None and found.startswith(message) and "\n" not in found


def test_a_few_of_many():
    found = disagreement([{f"a{i}": i for i in range(9)}, {f"a{i}": [i, 1.5] for i in range(9)}])
    assert found is not None and found.startswith("process 1 has a0 0 1.5 where process 0 has 0; a1 1 1.5 where")
    assert "a3 3 1.5 where process 0 has 3; and 5 more: they must be the same" in found


def test_settings_of_other_networks_are_not_listed():
    """What only one of them has says less than which network it is."""
    found = disagreement([told(), told(dataclasses.replace(CONFIG, model=DiTConfig()))])
    assert found is not None and "nothing" not in found and "more" not in found
