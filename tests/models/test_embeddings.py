"""The time embedding against stored PyTorch values and against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.embeddings import timestep_embedding


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("dim", [16, 17, 64])
@pytest.mark.parametrize(("flip", "shift"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_equals_stored_embeddings(scale, dim, flip, shift, shared_golden):
    """diffusers' four conventions; the DDIM repository has the second of them, OpenAI's code the third.

    Their scale is a factor of the time.
    """
    arrays = np.load(shared_golden / "networks" / "time_embeddings.npz", allow_pickle=False)
    names = [f"diffusers.dim{dim}.flip{flip}.shift{shift}.scale{scale}"]
    if scale == 1:
        names += {(0, 1): [f"ddim.dim{dim}"], (1, 0): [f"guided.dim{dim}"]}.get((flip, shift), [])
    t = scale * arrays["t"]
    actual = timestep_embedding(jnp.asarray(t), dim, cosine_first=bool(flip), endpoint=bool(shift))
    for name in names:
        # The angle t * w is rounded to float32: its error grows with t.
        error = np.abs(actual - arrays[name]) / np.maximum(1, np.abs(t))[:, None]
        assert error.max() < 3e-7, name


def test_fractional_times_in_float64():
    t = np.array([0.0, 0.25, 0.5, 17.75], np.float32)
    frequencies = 10000.0 ** -(np.arange(5) / 4)
    angles = t.astype(np.float64)[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(timestep_embedding(jnp.asarray(t), 10), expected, atol=3e-6)


@pytest.mark.parametrize(("shape", "dim", "message"), [((2, 1), 8, r"t must be \[B\]"), ((2,), 3, "dim must be at")])
def test_errors(shape, dim, message):
    with pytest.raises(ValueError, match=message):
        timestep_embedding(jnp.zeros(shape), dim)
