"""Micro-batches against the batch they are cut from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.train import task
from ddpm_jax.train.accumulation import accumulated
from tests.train.test_mesh import SGD, assert_close, assert_metrics_close, prepare, record, run
from tests.train.test_step import BATCH, HYBRID, SHORT, Small, diffusion, every_task, has_learned

INDICES = jnp.arange(8, dtype=jnp.uint32)


pytestmark = pytest.mark.usefixtures("optax_promotes")


@pytest.fixture(scope="module")
def gradient():
    """(the gradient of a step with dropout and a learned variance, a state to take it at)."""
    trained = diffusion(Small(2), optax.adam(1e-3), HYBRID, SHORT)
    with jax.numpy_dtype_promotion("standard"):
        return trained.gradient, task.init(trained, jax.random.key(0))


def test_a_mean_of_means_and_every_example_in_its_place():
    """For a function whose means are known: those of 2 i x_i^2 and of x_i."""

    def gradient(scale, batch, indices, batch_size):
        x = batch.astype(jnp.float32)
        return (scale * jnp.mean(indices * x**2), jnp.mean(x)), (indices, batch_size * x)

    x = jnp.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])
    for num_parts in (1, 2, 3, 4, 6, 12):
        for unroll in (True, False):
            whole = accumulated(gradient, num_parts, unroll=unroll)
            means, (indices, scaled) = whole(2.0, x, jnp.arange(12), 24)
            expected = 2 * np.mean(np.arange(12) * np.asarray(x) ** 2), np.mean(np.asarray(x))
            np.testing.assert_allclose(means, expected, rtol=1e-6)
            np.testing.assert_array_equal(indices, np.arange(12))
            np.testing.assert_array_equal(scaled, 24 * x)


@pytest.mark.parametrize("unroll", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_gradient_of_micro_batches_is_that_of_the_batch(gradient, unroll):
    one, train_state = gradient
    expected, said = jax.jit(one, static_argnums=3)(train_state, {"image": BATCH}, INDICES, 8)
    assert expected.parts.keys() == {"simple", "vlb"}
    for num_parts in (2, 4, 8):
        many = jax.jit(accumulated(one, num_parts, unroll=unroll), static_argnums=3)
        means, said_by_parts = many(train_state, {"image": BATCH}, INDICES, 8)
        assert_close(means, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(said_by_parts.t, said.t)
        assert_close(said_by_parts.losses, said.losses, rtol=1e-5)


def compiled(gradient, num_parts, unroll):
    one, train_state = gradient
    batch = {"image": np.tile(BATCH, (8, 1, 1, 1))}
    many = jax.jit(accumulated(one, num_parts, unroll=unroll), static_argnums=3)
    return many.lower(train_state, batch, jnp.arange(64, dtype=jnp.uint32), 64).compile()


def test_one_part_is_in_memory_at_a_time(gradient):
    """What a scanned program needs beside its arguments and results: activations of 8 images instead of 64."""
    temporary = lambda *arguments: compiled(gradient, *arguments).memory_analysis().temp_size_in_bytes
    assert temporary(8, False) < 0.25 * temporary(1, False)


def convolutions(program):
    return sum("convolution(" in line or "$conv" in line for line in program.as_text().splitlines())


@pytest.mark.campaign
def test_a_loop_where_loops_are_fast_and_none_on_a_cpu(gradient):
    """A scanned program has the convolutions of one part, an unrolled one those of all."""
    one = convolutions(compiled(gradient, 1, True))
    assert one >= 4
    assert convolutions(compiled(gradient, 4, False)) == one
    assert convolutions(compiled(gradient, 4, True)) == 4 * one


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2}], ids=["pmap", "mesh"])
def test_draws_do_not_depend_on_micro_batches(sizes):
    assert record(sizes, accumulate=2) == record({})


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2}], ids=["pmap", "mesh"])
@every_task
def test_steps_do_not_depend_on_micro_batches(sizes, make):
    (*_, expected), metrics = run(make(SGD), {}, 6)
    (*_, after), metrics_of_parts = run(make(SGD), sizes, 6, accumulate=2)
    assert has_learned(after.task_state)
    assert_metrics_close(metrics_of_parts, metrics, rtol=1e-5)
    assert_close(after, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_micro_batches_are_unrolled_on_a_cpu():
    """In the step itself: as many convolutions as 2 parts have."""
    for sizes in ({}, {"fsdp": 4}):
        found = []
        for accumulate in (1, 2):
            train_step, template, _, batch = prepare(diffusion(Small(), SGD), sizes, accumulate=accumulate)
            found.append(convolutions(train_step.lower(template, batch).compile()))
        assert found[1] == 2 * found[0] >= 8, sizes


def test_examples_must_divide_into_micro_batches():
    train_step, template, _, batch = prepare(diffusion(Small(), SGD), {}, accumulate=4)
    with pytest.raises(ValueError, match=r"accumulate 4 does not divide the 2 examples of each device .*8 on 4 dev"):
        train_step.lower(template, batch)
