"""Super-resolution: guided-diffusion's super_res_sample.py as recorded, and which networks can do it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import images, interop, samplers
from ddpm_jax.models import UNet
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.uses import upscaling
from tests.helpers import relative, trace, trained_of


@pytest.fixture
def recorded(shared_golden):
    with np.load(shared_golden / "uses" / "super_res_sample.npz") as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["meta"]))
    config = meta["config"]  # with resblock_updown, which one level does not show
    flags = {"diffusion_steps": 1000, "noise_schedule": "linear", "in_channels": 6}
    trained = interop.load(shared_golden / "uses" / "super_res_sample.safetensors", config | flags)
    return arrays, meta, trained


def test_super_res_sample(recorded, highest):
    arrays, meta, trained = recorded
    nhwc = lambda x: jnp.asarray(np.moveaxis(x, -3, -1))
    table = make_table(trained.sampler, trained.schedule, int(meta["respacing"]), variance=trained.variance)
    np.testing.assert_array_equal(table.rows.time, arrays["model_times"][:, 0])
    low_res = images.to_float(arrays["base_u8"])
    np.testing.assert_allclose(low_res, nhwc(arrays["low_res"]), atol=1e-7)

    told = lambda **more: trained.denoiser(trained.model_fn(y=jnp.asarray(arrays["y"], jnp.int32), **more))
    found = trace(told(low_res=low_res), table, nhwc(arrays["x_init"]), nhwc(arrays["noise"]))
    for k, expected in enumerate(arrays["samples"]):
        assert relative(found[k], nhwc(expected)) < 1e-4, k
    # Their script truncates.
    pictures = np.clip((found[-1] + 1) * 127.5, 0, 255).astype(np.uint8)
    assert np.abs(pictures.astype(int) - arrays["final_u8"]).max() <= 1


def test_upscale_is_that_sampler(recorded):
    """The function against the loop, with its own noise; sample 1 alone is the second of two."""
    import jax

    arrays, _, trained = recorded
    table = make_table(trained.sampler, trained.schedule, 3, variance=trained.variance)
    low_res, y, key = images.to_float(arrays["base_u8"]), jnp.asarray(arrays["y"], jnp.int32), jax.random.key(4)
    of = lambda y: lambda **more: trained.denoiser(trained.model_fn(y=y, **more))
    both = upscaling.upscale(of(y), table, key, low_res, (16, 16, 3))
    expected = samplers.sample(of(y)(low_res=low_res), table, key, (2, 16, 16, 3))
    np.testing.assert_array_equal(both, expected)
    alone = upscaling.upscale(of(y[1:]), table, key, low_res[1:], (16, 16, 3), first_index=1)
    np.testing.assert_allclose(alone[0], both[1], atol=1e-4)  # a batch of another size rounds otherwise


def network(seen, **settings):
    params = {"conv_in": {"kernel": jnp.zeros((3, 3, seen, 4))}}
    return trained_of(model=UNet(**settings), params=params, image_shape=(8, 8, 3))


def test_which_networks_can():
    upscaling.check_network(network(6))
    with pytest.raises(ValueError, match=r"sees a smaller picture beside x_t \(low_res=\), got one without"):
        upscaling.check_network(network(3))
    for other in (network(7), network(6, transformer_depth=1)):
        with pytest.raises(
            ValueError, match="upscale gives a picture of 3 channels and a label, and the network needs"
        ):
            upscaling.check_network(other)
