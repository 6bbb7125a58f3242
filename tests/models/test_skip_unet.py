"""The U-Net with an image beside the features: its filters, its settings. Its numbers: tests/tools/parity."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import SkipUNet
from ddpm_jax.models.skip_unet import fir_down, fir_up

SMALL = SkipUNet(
    channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=None, attention_factors=(2,)
)


def images(key, height, width):
    return jax.random.normal(jax.random.key(key), (2, height, width, 3))


def test_filters_entry_by_entry():
    """(1, 3, 3, 1) / 8 of one row where it is alone, in both axes; zeros around."""
    x = jnp.zeros((1, 4, 6, 1)).at[0, 1, 2, 0].set(1.0)
    expected = np.zeros((2, 3))
    expected[:, 0:2] = np.outer([3, 1], [1, 3]) / 64  # row 1 is the third tap of row 0, the first of row 1
    np.testing.assert_allclose(fir_down(x)[0, :, :, 0], expected, atol=1e-7)
    rows, columns = np.array([0, 1, 3, 3, 1, 0, 0, 0]) / 4, np.array([0, 0, 0, 1, 3, 3, 1, 0, 0, 0, 0, 0]) / 4
    np.testing.assert_allclose(fir_up(x)[0, :, :, 0], np.outer(rows, columns), atol=1e-7)


def test_one_filter_is_the_others_transpose():
    x, y = images(0, 6, 8), images(1, 3, 4)
    np.testing.assert_allclose(jnp.vdot(fir_up(y), x), 4 * jnp.vdot(y, fir_down(x)), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer_depth": 1}, "SkipUNet has transformer_depth 0 alone, got 1"),
        ({"downsample": "resblock"}, "SkipUNet has downsample 'conv' alone, got 'resblock'"),
        ({"channels": 24}, "48 channels do not divide into num_groups 32"),
        ({"num_groups": 7}, "channels 32 is not divisible by num_groups 7"),
    ],
)
def test_settings_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **change).init, jax.random.key(0), images(0, 4, 4), jnp.ones(2))


def test_rematerialized_it_has_the_same_parameters():
    init = lambda model: jax.eval_shape(model.init, jax.random.key(0), images(0, 4, 4), jnp.ones(2))
    assert init(SMALL) == init(replace(SMALL, remat=True))
