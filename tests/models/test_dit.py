"""DiT: size, initial output, positions, precision, errors. Its numbers: tests/interop."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.dit import SIZES, DiT, DiTBlock, patch_init, sincos_positions, unpatchify
from tests.helpers import relative

SMALL = DiT(width=16, depth=2, num_heads=2, num_classes=3, out_channels=2)
T, Y = jnp.array([0.0, 500.5], jnp.float32), jnp.array([0, 3], jnp.int32)


def images(height=4, width=8):
    return jax.random.normal(jax.random.key(1), (2, height, width, 1), jnp.float32)


def perturbed(params, scale=0.3):
    """N(0, scale^2) added to every parameter, or the network would be zero."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [scale * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, params, treedef.unflatten(noise))


def assert_remat_of(gradient, model, params, num_blocks):
    """gradient(model)(params) is the same with remat, which is asked for once per block."""
    plain, remat = gradient(model), gradient(replace(model, remat=True))
    counts = [str(jax.make_jaxpr(each)(params)).count("prevent_cse=True") for each in (plain, remat)]
    assert counts == [0, num_blocks]
    expected, found = jax.jit(plain)(params), jax.jit(remat)(params)
    # Compared with the largest of all: a key bias has no gradient but rounding.
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale), found, expected)


@pytest.fixture(scope="module")
def initial():
    return jax.jit(SMALL.init)(jax.random.key(0), images(), T, y=Y)["params"]


def count(model, size, channels=4):
    x_t, t = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x_t, t, y=jax.ShapeDtypeStruct((1,), jnp.int32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.slow
def test_published_sizes():
    """Peebles and Xie 2022, table 4: 33, 130 (130.5), 458 and 675 million parameters for patch size 2.

    They include the table of positions: 256 width more.
    """
    assert DiT() == DiT(**SIZES["XL"], patch_size=2)
    assert count(DiT(), 32) == 675_129_632 - 256 * 1152
    millions = {name: (count(DiT(**size), 32) + 256 * size["width"]) / 1e6 for name, size in SIZES.items()}
    assert {name: round(number) for name, number in millions.items()} == {"S": 33, "B": 131, "L": 458, "XL": 675}
    # DiTTransformer2DModel(out_channels=8) of diffusers 0.42.1 on PyTorch's meta device.
    assert count(DiT(condition_per_block=True), 32) == 749_826_464


def test_initial_network_is_zero_and_its_blocks_are_the_identity(initial):
    np.testing.assert_array_equal(SMALL.apply({"params": initial}, images(), T, y=Y), 0)
    tokens = jax.random.normal(jax.random.key(3), (2, 8, 16), jnp.float32)
    block = DiTBlock(2, 4.0, 1e-6, jnp.float32)
    found = block.apply({"params": initial["block_0"]}, tokens, jnp.ones((2, 16), jnp.float32))
    np.testing.assert_array_equal(found, tokens)


def test_patches_start_as_one_dense_layer():
    """Xavier of a matrix [p p C, D]: uniform with variance 2 / (p p C + D)."""
    kernel = np.asarray(patch_init(jax.random.key(0), (4, 4, 8, 512)))
    bound = math.sqrt(6 / (128 + 512))
    assert bound * 0.999 < np.abs(kernel).max() <= bound
    # The standard error of a variance of n uniform draws is variance * sqrt(0.8 / n).
    assert abs(kernel.var() / (bound**2 / 3) - 1) < 5 * math.sqrt(0.8 / kernel.size)


def test_positions():
    """The formula entry by entry, for 3 rows of 2 columns; rows of the table are distinct."""
    table = sincos_positions(3, 2, 8)
    for i in range(3):
        for j in range(2):
            expected = [f(p * w) for p in (j, i) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
            np.testing.assert_allclose(table[2 * i + j], expected, rtol=1e-6, atol=1e-9)


def test_positions_equal_stored_ones(shared_golden):
    """Those of diffusers are places in a grid of 16 x 16, whatever the number of patches: every fourth of 16 here."""
    arrays = np.load(shared_golden / "networks" / "time_embeddings.npz", allow_pickle=False)
    table = sincos_positions(16, 16, 16).reshape(16, 16, 16)[::4, ::4]
    np.testing.assert_allclose(table.reshape(16, 16), arrays["sincos2d.dim16.grid4"], atol=1e-7)
    for size, dim in ((4, 16), (3, 32)):
        table = sincos_positions(size, size, dim, base_size=16)
        np.testing.assert_allclose(table, arrays[f"sincos2d.dim{dim}.grid{size}"], atol=1e-7)


def test_positions_with_a_base_size():
    """Row 2 of 6 on a base of 3 is row 1 of 3; columns have their own number; the image's own size changes nothing."""
    table = sincos_positions(6, 2, 8, base_size=3).reshape(6, 2, 8)
    np.testing.assert_array_equal(table[::2, 0], sincos_positions(3, 1, 8))
    places = np.arctan2(table[0, :, 0], table[0, :, 2]), np.arctan2(table[:, 0, 4], table[:, 0, 6])
    np.testing.assert_allclose(places[0], [0, 1.5], atol=1e-6)
    np.testing.assert_allclose(places[1], np.arange(6) / 2, atol=1e-6)
    np.testing.assert_array_equal(sincos_positions(5, 5, 8, base_size=5), sincos_positions(5, 5, 8))
    with pytest.raises(ValueError, match="base_size must be positive, got 0"):
        sincos_positions(5, 5, 8, base_size=0)


def test_unpatchify_puts_every_pixel_back():
    image = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    tokens = [image[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2) for j in (0, 2, 4)]
    np.testing.assert_array_equal(unpatchify(jnp.asarray(np.stack(tokens, axis=1)), 4, 6, 2), image)


def test_an_example_does_not_depend_on_the_batch(initial, highest):
    params = perturbed(initial)
    apply = jax.jit(SMALL.apply)
    together = apply({"params": params}, images(), T, y=Y)
    alone = apply({"params": params}, images()[1:], T[1:], y=Y[1:])
    assert relative(together[1:], alone) < 1e-5
    # And it does depend on time and class.
    assert relative(apply({"params": params}, images(), T + 100, y=Y), together) > 1e-2
    assert relative(apply({"params": params}, images(), T, y=jnp.array([1, 2], jnp.int32)), together) > 1e-2


def test_a_label_out_of_range_gives_nan(initial):
    assert np.isnan(SMALL.apply({"params": perturbed(initial)}, images(), T, y=Y + 1)[1]).all()


def test_without_null_label_the_table_is_one_shorter():
    def rows(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), images(), T, y=Y)["params"]
        return shapes["condition_0"]["label"]["embedding"].shape

    assert rows(SMALL) == (4, 16)
    assert rows(replace(SMALL, null_label=False)) == (3, 16)


@pytest.mark.slow
def test_remat_has_the_same_gradient(initial, highest):
    """And recomputes every block. What that saves cannot be seen on a CPU, where XLA merges equal computations."""
    params = perturbed(initial)

    def gradient(model):
        return jax.grad(lambda params: jnp.mean(model.apply({"params": params}, images(), T, y=Y) ** 2))

    assert_remat_of(gradient, SMALL, params, SMALL.depth)


@pytest.mark.parametrize(
    ("change", "x_shape", "t", "y", "message"),
    [
        ({}, (4, 4, 1), T, Y, r"x_t must be \[B, H, W, C\], got shape \(4, 4, 1\)"),
        ({}, (2, 4, 4, 1), Y, Y, r"t must be \[B\] float with B = 2, got int32\[2\]"),
        ({}, (2, 4, 4, 1), T[:1], Y, r"t must be \[B\] float with B = 2, got float32\[1\]"),
        ({}, (2, 4, 4, 1), T, T, r"y must be \[B\] int with B = 2, got float32\[2\]"),
        ({}, (2, 4, 5, 1), T, Y, "H and W must be divisible by patch_size 2, got 4 x 5"),
        ({"num_heads": 3}, (2, 4, 4, 1), T, Y, "width 16 is not divisible by num_heads 3"),
        ({"width": 18}, (2, 4, 4, 1), T, Y, "width must be divisible by 4, got 18"),
        ({"depth": 0}, (2, 4, 4, 1), T, Y, "depth must be at least 1, got 0"),
        ({"mlp_ratio": 0}, (2, 4, 4, 1), T, Y, "mlp_ratio must be positive, got 0"),
    ],
)
def test_errors_while_tracing(change, x_shape, t, y, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **change).init, jax.random.key(0), jnp.zeros(x_shape), t, y=y)
