"""LPIPS beside the package lpips and taming-transformers', with the weights of a recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.interop import layers
from ddpm_jax.interop.features.lpips import find_heads, lpips_to_params, read_lpips
from ddpm_jax.models.lpips import LPIPS, unit
from tests.evaluate import recipe

IMAGE = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
SLICES = {"vgg": (4, 9, 16, 23, 30), "alex": (2, 5, 8, 10, 12), "squeeze": (2, 5, 8, 10, 11, 12, 13)}
"""Where the slices of the package lpips end, in the numbers of torchvision."""


def weights_of(backbone: str, seed: int = 20261101) -> dict[str, np.ndarray]:
    """Of the recipe, by the names of the package."""
    found = {}
    for path, shape in layers.param_shapes(LPIPS(backbone), IMAGE, IMAGE).items():
        if path.startswith("head_"):
            name, shape = f"lin{path[5:]}.model.1.weight", (1, shape[0], 1, 1)
            value = np.abs(recipe.normal(name, shape, seed)) / shape[1]
        else:
            _, layer, *inside, leaf = path.split("/")
            index = int(layer.split("_")[1])
            place = next(i for i, end in enumerate(SLICES[backbone], 1) if index < end)
            name = ".".join([f"net.slice{place}.{index}", *inside, "bias" if leaf == "bias" else "weight"])
            shape = shape if leaf == "bias" else (shape[3], shape[2], *shape[:2])
            scale = 0.1 if leaf == "bias" else np.sqrt(2 / np.prod(shape[1:]))
            value = scale * recipe.normal(name, shape, seed)
        found[name] = value.astype(np.float32)
    return found


@pytest.fixture(scope="module")
def golden(shared_golden):
    return np.load(shared_golden / "first_stage" / "lpips.npz")


def pair(golden, key: str) -> tuple[jax.Array, jax.Array]:
    a, b = (jnp.asarray(golden[f"{key}.{name}"].transpose(0, 2, 3, 1)) for name in "ab")
    return a, b


@pytest.mark.parametrize("key", ("vgg32", "alex32", "squeeze48"))
def test_distances_layers_and_gradients_of_the_package(key, golden):
    backbone = key.rstrip("0123456789")
    model, a_and_b = LPIPS(backbone), pair(golden, key)
    params = lpips_to_params(backbone, weights_of(backbone))

    def distance(b, a, params):  # an argument, because constants of this size are compiled for long
        maps = model.apply({"params": params}, a, b, method="layers")
        means = jnp.stack([each.mean(axis=(1, 2)) for each in maps])
        spatial = backbone == "alex" and model.apply({"params": params}, a, b, method="spatial")
        return means.sum(), (means, spatial)

    a, b = a_and_b
    if backbone == "squeeze":  # its gradient takes longer to compile than it tells
        _, (means, spatial) = jax.jit(distance)(b, a, params)
    else:
        (_, (means, spatial)), gradient = jax.jit(jax.value_and_grad(distance, has_aux=True))(b, a, params)
        of_b = golden[f"{key}.grad_b"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(gradient, of_b, rtol=0, atol=1e-5 * np.abs(of_b).max())
    np.testing.assert_allclose(means, golden[f"{key}.per_layer"], rtol=1e-5)
    expected = golden[f"{key}.dist"].reshape(-1)
    np.testing.assert_allclose(means.sum(axis=0), expected, rtol=1e-5)
    np.testing.assert_allclose(golden[f"{key}.dist_normalize"].reshape(-1), expected, rtol=1e-5)
    if backbone == "alex":
        np.testing.assert_allclose(spatial, golden[f"{key}.spatial"][:, 0], rtol=1e-5)


def test_the_direction_of_nothing_is_nothing_and_so_is_its_gradient():
    """Where no feature of a layer is above 0; the derivative of a root there would be NaN."""
    x = jnp.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    found, gradient = jax.value_and_grad(lambda x: jnp.sum(unit(x) * jnp.array([[1.0, 2.0, 3.0]])))(x)
    np.testing.assert_allclose(found, 0.6 + 2.4, rtol=1e-6)
    # (I - u u^T) (1, 2, 3) / 5 with u = (3, 0, 4) / 5
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-0.16, 0.4, 0.12]], atol=1e-7)


def test_names_of_torchvision_and_heads_from_a_file(tmp_path):
    weights = weights_of("alex")
    theirs, heads = {}, {}
    for name, array in weights.items():
        if name.startswith("lin"):
            heads[name.replace(".1.", ".0.")] = array  # as without dropout
        else:
            theirs["features." + name.split(".", 2)[2]] = array
    theirs["classifier.1.weight"] = np.zeros((3, 3), np.float32)
    save_file(theirs, tmp_path / "alexnet.safetensors")
    save_file(heads, tmp_path / "heads.safetensors")
    found = read_lpips("alex", tmp_path / "alexnet.safetensors", tmp_path / "heads.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, lpips_to_params("alex", weights))
    with pytest.raises(ValueError, match=r"missing features\.3\.weight"):
        lpips_to_params("alex", {name: weights[name] for name in weights if name != "net.slice2.3.weight"})


def test_what_is_not_known(monkeypatch):
    with pytest.raises(ValueError, match="unknown backbone 'resnet'"):
        lpips_to_params("resnet", {})
    with pytest.raises(ValueError, match=r"both, got \[1, 32, 32, 3\] and \[1, 16, 16, 3\]"):
        jax.eval_shape(LPIPS("vgg").init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 16, 16, 3)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps lpips"):
        find_heads("vgg")
