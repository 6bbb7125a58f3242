"""FID's Inception beside torch-fidelity's and pytorch-fid's, with the weights of a recipe."""

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluate import features
from ddpm_jax.interop.features.inception import inception_to_params, of_jax_fid
from ddpm_jax.models import inception, resizing
from tests.evaluate import recipe

GOLDEN = Path(__file__).parent.parent / "golden"
FID = {"64": "block0", "192": "block1", "768": "block2", "2048": "block3"}


def nhwc(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def weights():
    told = json.loads((GOLDEN / "fid" / "inception_weights.json").read_text())
    shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in told["tensors"] if tensor["dtype"] == "float32"}
    found = {name: recipe.tensor(name, shape, told["seed"]) for name, shape in shapes.items()}
    first = told["tensors"][0]
    np.testing.assert_allclose(found[first["name"]].sum(dtype=np.float64), first["sum"], rtol=1e-12)
    return found


def cases():
    """Inputs of 299 x 299 and the features of the originals: some of each kind of picture, for one compilation."""
    fidelity = np.load(GOLDEN / "metrics" / "inception_torch_fidelity.npz")
    fid = np.load(GOLDEN / "fid" / "inception_features.npz")
    names = {name: name if name != "spatial" else "spatial2023" for name in inception.SIZES}
    large = fidelity["c2.images_small_u8"].repeat(13, 2).repeat(13, 3)
    for key, images in (("c1", fidelity["c1.images_u8"]), ("c2", large)):
        expected = {name: fidelity[f"{key}.{theirs}"][0] for name, theirs in names.items()}
        yield inception.tensorflow_input(jnp.asarray(nhwc(images[:1]))), expected
    expected = {name: fid[f"c0.{block}.pooled"][0] for name, block in FID.items()}
    yield inception.pytorch_fid_input(jnp.asarray(nhwc(fid["c0.images_u8"][:1]))), expected


def test_features_of_torch_fidelity_and_pytorch_fid(weights):
    """float32 in another order: 9e-6 where features are up to 8."""
    inputs, expected = zip(*cases(), strict=True)
    params = inception_to_params(weights)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda params, x: inception.Inception().apply({"params": params}, x))(
            params, jnp.concatenate(inputs)
        )
    for row, each in enumerate(expected):
        for name, values in each.items():
            np.testing.assert_allclose(found[name][row], values, rtol=0, atol=2e-5, err_msg=f"{row} {name}")


def test_tensorflows_resize_to_the_bit():
    golden = np.load(GOLDEN / "metrics" / "resize_tensorflow.npz")
    for key in ("r0", "r1", "r2"):
        x, expected = jnp.asarray(golden[f"{key}.x"], jnp.float32), golden[f"{key}.tf1"]
        found = resizing.tensorflow_resize(x, expected.shape[1:3])
        np.testing.assert_array_equal(found, expected)
        # TF-2's is half-pixel, as PyTorch's; it computes its places in another order.
        found = resizing.half_pixel_resize(x, expected.shape[1:3])
        np.testing.assert_allclose(found, golden[f"{key}.tf2"], rtol=0, atol=1e-4)


def test_average_pools_do_not_count_what_is_outside():
    """Of ones everywhere they are one, at the corners too; zeros that were counted would make it 4 / 9 there."""
    np.testing.assert_allclose(inception.same_average_pool(jnp.ones((1, 5, 6, 2))), 1, rtol=1e-6)


def test_torchvisions_network_is_refused(weights):
    theirs = weights | {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}
    with pytest.raises(ValueError, match=r"torchvision's Inception-v3 \(1000 classes\), which is another network"):
        inception_to_params(theirs)
    with pytest.raises(ValueError, match="another network"):
        inception_to_params(weights | {"AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1))})


def test_weights_that_do_not_fit(weights):
    less = {name: array for name, array in weights.items() if name != "Mixed_5b.branch1x1.bn.running_var"}
    with pytest.raises(ValueError, match=r"missing Mixed_5b\.branch1x1\.bn\.running_var$"):
        inception_to_params(less)
    with pytest.raises(ValueError, match=r"Conv2d_1a_3x3\.bn\.bias is \[31\], expected \[32\]"):
        inception_to_params(weights | {"Conv2d_1a_3x3.bn.bias": np.zeros(31, np.float32)})


def test_jax_fids_pickle_is_refused_with_the_way_to_convert_it(tmp_path, weights):
    """What that way makes of it has pytorch-fid's names and axes again."""
    (tmp_path / "inception_v3_weights_fid.pickle").write_bytes(pickle.dumps({"fc": {"bias": np.zeros(3)}}))
    with pytest.raises(ValueError, match=r"is a pickle, as jax-fid.s.*flatten_dict.*which is read") as error:
        features.of_name(tmp_path / "inception_v3_weights_fid.pickle")
    assert "\n" not in str(error.value)
    flax = {"running_mean": "mean", "running_var": "var"}
    flattened = {}
    for name, array in weights.items():
        *layer, end = name.split(".")
        leaf = "bias" if end == "bias" else flax.get(end, "scale" if layer[-1] == "bn" else "kernel")
        flattened["/".join([*layer, leaf])] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    back = of_jax_fid(flattened)
    assert features.weights_sha256(back) == features.weights_sha256(weights)


def test_where_there_are_no_weights_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pt_inception-2015-12-05-6726825d\.pth, from https://"):
        features.of_name("inception")
