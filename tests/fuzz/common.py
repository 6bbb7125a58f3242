"""What every fuzz test asks: a bad value is refused in the house form, or is not bad.

Refused is a ValueError or an OSError (FileNotFoundError is one) of one line that names the argument; nothing else is
ever raised, and nothing is written. Examples are derandomized: a failure is the same on every machine.
"""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm_jax.config.run import Config, DataConfig, ModelConfig, SampleConfig, ScheduleConfig, TrainConfig
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import loop

# How many examples each group generates by default, and with -m campaign. `test_count` adds them up.
GROUPS = {
    "dictionaries": (150, 1500),
    "dataclasses": (150, 1500),
    "prepared": (20, 60),
    "train": (20, 60),
    "sample": (20, 60),
    "convert": (15, 30),
    "nll": (20, 40),
    "samplers": (40, 150),
    "commands": (20, 40),
    "config.json": (60, 250),
    "experiments": (40, 200),
    "metrics": (40, 200),
    "arrays": (60, 500),
    "folders": (30, 300),
    "names": (30, 200),
    "seals": (40, 100),
    "weights": (60, 200),
    "diffusers": (15, 60),
    "schedules": (80, 1500),
    "tables": (60, 1000),
    "grids": (60, 1000),
    "process": (40, 800),
    "timesteps": (40, 600),
    "weightings": (40, 1000),
}


def sizes(group: str) -> pytest.MarkDecorator:
    """The parameter `examples` of a test: few by default, many in a campaign."""
    few, many = GROUPS[group]
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.campaign)])


def fuzz(examples: int, strategy: st.SearchStrategy, test: Callable[[Any], None]) -> None:
    """Run test on so many different examples; fails if there are not as many."""
    seen = 0

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(strategy)
    def run(example: Any) -> None:
        nonlocal seen
        seen += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy and Pillow, about what is refused a line later
            test(example)

    run()
    assert seen >= examples, f"only {seen} different examples"


def make_run(home: Path) -> Path:
    """The directory of a small run, with a checkpoint of zeros: nothing is trained."""
    np.save(home / "images.npy", np.zeros((12, 8, 8, 1), np.uint8))
    config = Config(
        data=DataConfig(name=str(home / "images.npy")),
        schedule=ScheduleConfig("cosine", 8),
        model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2),
        sample=SampleConfig(num_steps=2, num_images=4),
        train=TrainConfig(num_steps=1, batch_size=8),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax, as in training
        run = loop.prepare(config)
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run.init))
    checkpoint.open_run(home / "run", checkpoint.RunInfo(config, run.source.image_shape, len(run.source)))
    with checkpoint.checkpoints(home / "run") as saved:
        saved.save(state)
    return home / "run"


def refused(call: Callable[[], Any], names: Iterable[str]) -> Any:
    """What call returns; or None where it refuses, which it must do with one of the names in its message."""
    try:
        return call()
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        names = list(names)
        assert any(name in message for name in names), f"none of {names} is in: {message}"
        return None


# ----------------------------------------------------------------------------------------------------------- values

WHOLE = st.sampled_from([0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**31), -(2**63) - 1, 10**400])
FLOATS = st.one_of(
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 1e300, -1e300, 1e-320, 0.5]),
)
TEXTS = st.one_of(
    st.text(max_size=8), st.sampled_from(["", " ", "\0", "linear", "ddim", "nan", "1", "--x", "~nobody/x"])
)
NUMBERS = st.one_of(WHOLE, FLOATS)
WRONG = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.just([]), st.just({}), st.binary(max_size=4))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3), st.tuples(inner)
    ),
    max_leaves=4,
)
