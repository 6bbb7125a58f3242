"""The patch discriminator: what its norms share between images, and taming's recorded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.discriminator import PatchDiscriminator
from tests.first_stage.golden import discriminator, discriminator_arrays, discriminator_variables, nhwc, recorded, under
from tests.helpers import few, relative


@pytest.mark.parametrize("case", few(range(5), 0, 2))
@pytest.mark.parametrize("train", [False, True])
def test_as_recorded(case, train, shared_golden, highest):
    arrays, meta, tensors = recorded(shared_golden, "discriminator")
    settings, key = meta["cases"][case], f"d{case}"
    arrays = under(arrays, f"{key}.")
    model = discriminator(settings["n_layers"], actnorm=settings["use_actnorm"], channels=settings["ndf"])
    variables = discriminator_variables(under(tensors, f"{key}."))
    if train and settings["use_actnorm"]:  # its first batch makes loc and scale
        convs = {name: layer for name, layer in variables["params"].items() if name.startswith("conv")}
        _, made = model.apply(
            {"params": convs}, nhwc(arrays["x"]), mutable="params", rngs={"params": jax.random.key(0)}
        )
        variables = {"params": {**convs, **made["params"]}}

    def loss(x):
        out, changed = model.apply(variables, x, train=train, mutable="batch_stats")
        theirs = jnp.moveaxis(out, -1, 1)
        return jnp.mean(theirs * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(theirs.shape)), (out, changed)

    grad, (out, changed) = jax.jit(jax.grad(loss, has_aux=True))(nhwc(arrays["x"]))
    name = "train" if train else "eval"
    assert relative(out, nhwc(arrays[f"out_{name}"])) < 1e-5
    assert relative(grad, nhwc(arrays[f"grad_x_{name}"])) < 1e-5
    if train:
        after = discriminator_arrays(changed.get("batch_stats", variables["params"]))
        expected = {k: v for k, v in under(arrays, "after_train.").items() if v.size > 1}
        assert expected.keys() <= after.keys()
        for name, array in expected.items():
            assert relative(after[name], array) < 1e-5, name


def test_with_group_norm_an_image_stands_for_itself():
    """Its logits do not depend on the others of its batch, and no others than the group norm's do."""
    x = jnp.asarray(np.random.RandomState(0).randn(3, 16, 16, 2), jnp.float32)
    for norm, same in (("group", True), ("batch", False)):
        model = PatchDiscriminator(channels=4, num_layers=2, norm=norm)
        variables = jax.jit(model.init)(jax.random.key(0), x)
        logits = jax.jit(lambda x, model=model, variables=variables: model.apply(variables, x, True, mutable=True)[0])
        together, alone = logits(x), logits(jnp.roll(x, 1, axis=3).at[:1].set(x[:1]))
        assert (float(jnp.abs(together[0] - alone[0]).max()) < 1e-6) == same
        assert float(jnp.abs(together[1] - alone[1]).max()) > 1e-3


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_images_that_are_too_small_for_it(layers):
    model = PatchDiscriminator(channels=4, num_layers=layers)
    least = {1: 8, 2: 16, 3: 32}[layers]
    with pytest.raises(ValueError, match=rf"at least {least} x {least}, got shape \(1, {least}, {least // 2}, 3\)"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, least, least // 2, 3)))
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, least, least, 3)))
