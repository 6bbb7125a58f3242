"""Guidance by a classifier: its scale as data, and where its gradient is taken."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.guidance import CLASSIFIER_FREE
from ddpm_jax.samplers.grids import leading
from tests.helpers import relative

N, SHAPE = 8, (3, 4, 4, 2)
GRID = leading(schedules.linear(1000), N)
X_T, NOISE = jax.random.normal(jax.random.key(0), SHAPE), jax.random.normal(jax.random.key(1), (N, *SHAPE))
DENOISE = samplers.denoiser(lambda x, t: jnp.tanh(x) + 1e-4 * t.astype(x.dtype).reshape(-1, 1, 1, 1), clip=1.0)
FORMS = {
    "mean": (guidance.mean_shifted, samplers.ddpm(GRID, variance="fixed_large")),
    "score": (guidance.score_shifted, samplers.ddim(GRID)),
}


def gradient(x, t):
    return jnp.sin(2 * x) - 0.5 + 1e-3 * t.astype(x.dtype).reshape(-1, 1, 1, 1)


def drawn(denoise, table):
    x_T, noise = (jnp.asarray(array, float) for array in (X_T, NOISE))
    return jax.jit(lambda: samplers.sample(denoise, table, None, SHAPE, x_T=x_T, noise=noise))()


@pytest.mark.parametrize("form", FORMS)
def test_a_scale_of_the_table(form, x64):
    """One number as one that is fixed; rows and examples with their own; an interval is a scale of 0 outside."""
    shifted, table = FORMS[form]
    from_table = shifted(DENOISE, gradient)
    fixed = drawn(shifted(DENOISE, gradient, scale=2.0), table)
    assert relative(fixed, drawn(DENOISE, table)) > 0.01
    np.testing.assert_allclose(drawn(from_table, guidance.on_classifier(table, scale=2.0)), fixed, atol=1e-9)
    each = drawn(from_table, guidance.on_classifier(table, scale=np.array([[0.0, 2.0, 5.0]])))
    for i, scale in enumerate((0.0, 2.0, 5.0)):
        np.testing.assert_allclose(each[i], drawn(shifted(DENOISE, gradient, scale=scale), table)[i], atol=1e-9)
    np.testing.assert_allclose(
        drawn(shifted(DENOISE, gradient, scale=jnp.array([0.0, 2.0, 5.0])), table), each, atol=1e-9
    )
    within = guidance.within(table, 300, 700)
    assert 0 < within.sum() < N

    def inside(x, t):
        return jnp.where((t >= 300) & (t <= 700), 1.0, 0.0).astype(x.dtype).reshape(-1, 1, 1, 1) * gradient(x, t)

    found = drawn(from_table, guidance.on_classifier(table, scale=2.0, interval=within))
    np.testing.assert_allclose(found, drawn(shifted(DENOISE, inside, scale=2.0), table), atol=1e-9)
    assert relative(found, fixed) > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_scale_0_do_not_call_the_classifier(form):
    shifted, table = FORMS[form]
    seen = collections.Counter()

    def counted(x, t):
        jax.debug.callback(lambda t: seen.update([float(t)]), t[0])
        return gradient(x, t)

    scale = np.where(np.arange(N) % 3 == 0, 1.5, 0.0)
    jax.block_until_ready(drawn(shifted(DENOISE, counted), guidance.on_classifier(table, scale=scale)))
    jax.effects_barrier()
    assert seen == {float(t): 1 for t in table.rows.time[::3]}


def test_the_gradient_at_the_mean():
    """mean + variance * scale * gradient(mean), one row: the paper's point; that of its code is another."""
    table = samplers.ddpm(GRID, variance="fixed_large")
    row = jax.tree.map(lambda leaf: jnp.float32(leaf[3]), table.rows)
    found = DENOISE(X_T, row)
    mean = row.mean[0] * found.x_0 + row.mean[1] * X_T
    for at, point in (("mean", mean), ("x_t", X_T)):
        got = guidance.mean_shifted(DENOISE, gradient, scale=3.0, at=at)(X_T, row).x_0
        expected = mean + row.variance * 3.0 * gradient(point, jnp.full(3, row.time))
        assert relative(row.mean[0] * got + row.mean[1] * X_T, expected) < 1e-5
    assert relative(gradient(mean, jnp.zeros(3)), gradient(X_T, jnp.zeros(3))) > 0.01


def test_beside_classifier_free_guidance():
    """Both on one table, whichever came first, each with its own numbers."""
    table = samplers.ddim(GRID)
    answers = guidance.of_each(lambda x, t: jnp.tanh(x), lambda x, t: 0.5 * x)
    denoise = guidance.guided(answers, samplers.denoiser, CLASSIFIER_FREE)
    both = guidance.on_classifier(guidance.on(table, CLASSIFIER_FREE, scale=3.0), scale=2.0)
    found = drawn(guidance.score_shifted(denoise, gradient), both)
    again = guidance.on(guidance.on_classifier(table, scale=2.0), CLASSIFIER_FREE, scale=3.0)
    np.testing.assert_array_equal(drawn(guidance.score_shifted(denoise, gradient), again), found)
    mixed = samplers.denoiser(lambda x, t: 3 * jnp.tanh(x) - 2 * 0.5 * x)
    assert relative(found, drawn(guidance.score_shifted(mixed, gradient, scale=2.0), table)) < 1e-5


def test_one_program_for_all_scales():
    run = samplers.Runner(lambda: guidance.score_shifted(DENOISE, gradient), SHAPE, max_calls=20)
    table = FORMS["score"][1]
    for k in range(4):
        run(
            guidance.on_classifier(table, scale=float(k), interval=guidance.within(table, 0, 250 * k)),
            jax.random.key(0),
        )
    assert run._run._cache_size() == 1


def test_the_scale_is_1_where_nobody_says():
    table = FORMS["score"][1]
    said = drawn(guidance.score_shifted(DENOISE, gradient, scale=1.0), table)
    np.testing.assert_array_equal(drawn(guidance.score_shifted(DENOISE, gradient), table), said)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: drawn(
                guidance.mean_shifted(DENOISE, gradient, scale=1.0), guidance.on_classifier(FORMS["mean"][1], scale=2.0)
            ),
            r"either scale or a table from guidance.on_classifier, got scale=1.0 and both",
        ),
        (lambda: guidance.mean_shifted(DENOISE, gradient, at="the mean"), "unknown at 'the mean'"),
        (
            lambda: guidance.on_classifier(FORMS["mean"][1], scale=np.ones(3)),
            r"scale must be a number, \[8\] or \[8, B\]",
        ),
        (
            lambda: guidance.on_classifier(FORMS["mean"][1], scale=1.0, interval=np.ones(3, bool)),
            r"interval must have shape \(8,\)",
        ),
    ],
)
def test_wrong_scales(call, message):
    with pytest.raises(ValueError, match=message):
        call()
