"""Settings as people write them for networks of other projects: another kind of value is refused by name."""

import pytest

from ddpm_jax.interop import kinds, openai
from ddpm_jax.interop.ddim.load import DIFFUSION, NETWORK, load_ddim
from ddpm_jax.interop.ldm import load as load_ldm
from ddpm_jax.interop.loading import _load_dit
from ddpm_jax.interop.openai import load as load_openai
from tests.interop.golden_networks import load as golden
from tests.interop.test_load_files import DDIM_FLAGS, FLAGS, LATENTS, latent_diffusion, unet_config  # noqa: F401

# What JSON holds.
VALUES = (None, True, 0, -1, 2.5, 10**30, float("inf"), float("nan"), "", "4", [], [0], ["a"], [[1]], {}, {"a": 1})


def refused_by_name(load, weights, config, names, values=VALUES):
    """Every other kind of value: loaded, or one line of a ValueError; never anything else."""
    by_name = 0
    for name in names:
        for value in values:
            try:
                load(weights, {**config, name: value})
            except ValueError as error:
                assert "\n" not in str(error), (name, value)
                by_name += name in str(error)
    assert by_name > 0.5 * len(names) * len(values)


def test_of_dit(shared_golden):
    _, meta, weights = golden(shared_golden, "dit_plain")
    config = {name: meta["config"][name] for name in meta["config"] if name in kinds.DIT}
    refused_by_name(_load_dit, weights, config, kinds.DIT)


def test_of_ddim(shared_golden):
    _, meta, weights = golden(shared_golden, "ddim_model")
    refused_by_name(load_ddim, weights, meta["config"] | DDIM_FLAGS, (*NETWORK, *DIFFUSION))


def test_of_openai(shared_golden):
    _, meta, weights = golden(shared_golden, "guided_unet_legacy")
    names = [name for name in kinds.OPENAI if name in (*load_openai.DIFFUSION, *openai.DEFAULTS, *unet_config(meta))]
    refused_by_name(load_openai.load_unet, weights, unet_config(meta) | FLAGS, names)


def test_of_latent_diffusion(latent_diffusion):  # noqa: F811
    weights, unet, first = latent_diffusion
    weights = {name: array for name, array in weights.items() if not name.startswith("first_stage_model.")}
    config, few = LATENTS | {"unet_config": unet}, (None, "4", 2.5, [1], {"a": 1})
    refused_by_name(load_ldm.load_latent_diffusion, weights, config, kinds.LATENT_DIFFUSION, few)

    def load_unet(weights, unet):
        return load_ldm.load_latent_diffusion(weights, config | {"unet_config": {"params": unet}})

    def load_stage(weights, stage):
        given = {"params": {"embed_dim": 4, "ddconfig": stage}}
        return load_ldm._first_stage(weights, {"scale_factor": 1.0, "first_stage_config": given})

    refused_by_name(load_unet, weights, unet, ("context_dim", "transformer_depth", "use_linear_in_transformer"), few)
    stage = {name: value for name, value in first.items() if name != "embed_dim"}
    names = [name for name in kinds.DDPM if name in stage]
    refused_by_name(load_stage, latent_diffusion[0], stage, names, few)


@pytest.mark.parametrize("value", [{"params": 3}, {"params": {"embed_dim": 4}}, {"a": 1}])
def test_a_class_and_its_arguments(value, latent_diffusion):  # noqa: F811
    weights, unet, _ = latent_diffusion
    with pytest.raises(ValueError, match="first_stage_config"):
        load_ldm.load_latent_diffusion(weights, LATENTS | {"unet_config": unet, "first_stage_config": value})
