"""Draws are functions of the seed: not of the batch, of JAX's default generator, or of x64."""

import ast
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cli, conditions, keys, schedules
from ddpm_jax.evaluate.likelihood import probability_flow
from ddpm_jax.models.layers import dropout
from ddpm_jax.special import binomial
from tests.conditions.test_conditions import Class

ROOT = Path(__file__).parent.parent


def test_a_seed_makes_the_same_key_whatever_the_default_is():
    draw = lambda: np.asarray(jax.random.normal(keys.make(5), (3,)))
    expected = draw()
    np.testing.assert_array_equal(expected, jax.random.normal(jax.random.key(5), (3,)))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(draw(), expected)


@pytest.mark.parametrize(
    "path", [ROOT / "ddpm_jax", ROOT / "experiments", ROOT / "benchmarks"], ids=lambda path: path.name
)
def test_keys_are_made_in_one_place(path):
    for file in set(path.rglob("*.py")) - {ROOT / "ddpm_jax" / "keys.py"}:
        called = [
            ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
        ]
        assert not {"jax.random.key", "random.key", "jax.random.PRNGKey", "random.PRNGKey"}.intersection(called), file


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_keys_whose_draws_depend_on_the_batch_are_refused(implementation):
    key = jax.random.key(0, impl=implementation)
    keys_of = lambda first, n: jax.vmap(jax.random.fold_in, (None, 0))(key, first + np.arange(n))
    draw = lambda first, n: np.asarray(jax.vmap(jax.random.normal)(keys_of(first, n)))
    assert (draw(0, 4)[2:] != draw(2, 2)).any()  # else there is nothing to refuse
    with pytest.raises(ValueError, match=rf"got one of {implementation}: make it with .*impl='threefry2x32'"):
        keys.example_keys(key, 0, 4)
    assert keys.example_keys(jax.random.PRNGKey(0), 0, 4).shape == (4, 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda: jax.threefry_partitionable(False), "JAX_THREEFRY_PARTITIONABLE must be True, got False"),
        (lambda: jax.enable_x64(True), "JAX_ENABLE_X64 must be False, got True"),
        (
            lambda: flax.config.temp_flip_flag("fix_rng_separator", True),
            "FLAX_FIX_RNG_SEPARATOR must be False, got True",
        ),
    ],
)
def test_commands_refuse_settings_under_which_runs_would_be_others(setting, message, capsys, tmp_path):
    with setting(), pytest.raises(SystemExit) as stop:
        cli.main(["train", "--workdir", str(tmp_path / "run")])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and message in error and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_an_offset_of_seeds_is_refused():
    jax.config.update("jax_random_seed_offset", 1)
    try:
        with pytest.raises(ValueError, match="JAX_RANDOM_SEED_OFFSET must be 0, got 1"):
            keys.make(0)
    finally:
        jax.config.update("jax_random_seed_offset", 0)


def dropped(key):
    return dropout(jnp.ones((4, 30), jnp.float32), jax.random.split(key, 4), 0.3)


def told(key):
    """Whether each of 30 examples keeps its condition."""
    batch = {"label": jnp.zeros(30, jnp.int32)}
    return conditions.conditioning(Class(), batch, jax.random.split(key, 30), 0.5)["y"]


def signs(key):
    return probability_flow._probes(key, 0, jnp.zeros((4, 30), jnp.float32), random=True)(jnp.int32(1))


def bits(key):
    model_fn = lambda x_t, t: jnp.zeros_like(x_t)
    return binomial.trajectory(model_fn, schedules.linear(3), key, (4, 30))


@pytest.mark.parametrize("draw", [dropped, told, signs, bits])
def test_draws_of_float32_are_the_same_under_x64(draw):
    expected = np.asarray(draw(keys.make(1)))
    assert len(np.unique(expected)) > 1
    with jax.enable_x64(True):
        found = np.asarray(draw(keys.make(1)))
    np.testing.assert_array_equal(found, expected, strict=True)
