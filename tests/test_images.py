import numpy as np
import pytest

from ddpm_jax import images


def test_round_trip_of_every_value():
    x = np.arange(256, dtype=np.uint8)
    y = images.to_float(x)
    assert y.dtype == np.float32 and y[0] == -1 and y[255] == 1
    np.testing.assert_allclose(y, np.arange(256) / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(images.to_uint8(y), x)


def test_to_uint8_rounds_and_clips():
    np.testing.assert_array_equal(images.to_uint8(np.array([-1.5, -1 + 0.6 / 127.5, 7.0])), [0, 1, 255])


def test_grid_puts_every_image_in_its_place():
    x = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 2, 3, 1), np.uint8)
    g = images.grid(x)
    assert g.shape == (2 * 3 + 1, 3 * 4 + 1, 1)
    for i in range(5):
        top, left = 1 + i // 3 * 3, 1 + i % 3 * 4
        assert (g[top : top + 2, left : left + 3] == i).all()
    assert (g[0] == 255).all() and (g[:, 0] == 255).all() and (g[4:6, 9:12] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_a_picture_can_show_is_left_alone(channels):
    x = np.arange(24 * channels, dtype=np.uint8).reshape(2, 3, 4, channels)
    assert images.viewable(x) is x and images.shown_as(channels) is None


def test_only_uint8_is_scaled():
    with pytest.raises(ValueError, match="images must be uint8, got float32"):
        images.to_float(np.zeros(3, np.float32))
