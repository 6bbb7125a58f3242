"""`ddpm-jax parity`: planted differences of guidance, losses and networks are named, and nothing is left out."""

import pytest

from ddpm_jax.tools.parity import (
    against,
    configs,
    guidance,
    losses,
    networks,
    search,
)
from ddpm_jax.tools.parity.guidance import Combined, Threshold
from ddpm_jax.tools.parity.losses import Form
from ddpm_jax.tools.parity.results import Difference, compared
from tests.helpers import trained_of


def named(result):
    """The conventions in the note of an explained difference."""
    assert result.verdict == "explained" and result.difference > result.tolerance, result
    return result.note.split(" with ", 1)[1].split(" and ")


def test_a_difference_without_an_explanation_stays_one():
    line = compared("losses", "a", "b", Difference(0.5, 0), 1e-4)
    table = {"snr": search.having(over="snr")}
    assert search.explained(line, Form(), table, lambda form: 0.5) == line
    assert named(search.explained(line, Form(), table, lambda form: 5e-5)) == ["snr"]
    same = compared("losses", "a", "b", Difference(5e-5, None), 1e-4)
    assert search.explained(same, Form(), table, lambda form: 0.0) == same


# ---------------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize(
    ("form", "learned", "settings", "names"),
    [
        (Combined(3.0), False, {}, None),
        (Combined(3.0, means="weight"), False, guidance.ORIGINAL, None),
        (Combined(3.0), False, guidance.ORIGINAL, ["G1 the number is w of (1 + w) c - w u"]),
        (Combined(3.0, means="weight"), False, {}, ["G1 the number is s of u + s (c - u)"]),
        (Combined(3.0), False, {"guidance_rescale": 0.7}, ["G5 guidance_rescale=0.7"]),
        (Combined(3.0), True, {}, ["G2 all channels guided, the variance too"]),
        (
            Combined(3.0),
            False,
            guidance.ORIGINAL | {"guidance_rescale": 0.7},
            ["G1 the number is w of (1 + w) c - w u", "G5 guidance_rescale=0.7"],
        ),
    ],
)
def test_guidance_of_a_guider(form, learned, settings, names, libraries):
    result = guidance.compare_guider(libraries, form, learned, guidance.CFG, settings)
    assert result.verdict == "same" if names is None else named(result) == names


def test_guidance_of_a_pipeline(libraries):
    """DiT's pipeline guides the channels of x, of a batch that begins with the conditional half."""
    assert guidance.compare_pipeline(libraries).verdict == "same"
    result = guidance.compare_pipeline(libraries, Combined(4.0, guided="first 3", halves="exchanged"))
    assert named(result) == ["G2 the channels of x guided", "G2 halves of the batch not exchanged"]


def test_thresholds(libraries):
    for form, settings in guidance.THRESHOLDS[:2]:
        assert guidance.compare_threshold(libraries, form, settings).verdict == "same"
    result = guidance.compare_threshold(libraries, Threshold(0.9, 20.0), {"sample_max_value": 20.0})
    assert named(result) == ["G6 dynamic_thresholding_ratio=0.995"]


# ------------------------------------------------------------------------------------------------------------ losses


def test_weights_of_min_snr(libraries):
    for prediction in ("eps", "x_0", "v"):
        assert losses.compare_min_snr(libraries, prediction).verdict == "same"
    for prediction, form, name in (
        ("v", Form(over="snr"), "L4 over SNR + 1, whatever is predicted"),
        ("eps", Form(over="1"), "L4 over SNR, whatever is predicted"),
    ):
        assert named(losses.compare_min_snr(libraries, prediction, form)) == [name]
    assert named(losses.compare_snr(libraries)) == ["S5 schedule in float32"]


# ---------------------------------------------------------------------------------------------------------- networks


def loaded_with(net, **changes):
    """What is read of a network of diffusers whose config says something else of it."""
    config = dict(net.config) | changes
    from_config, to_params, _ = networks.OURS[type(net).__name__]
    return trained_of(
        config=config, model=from_config(config), params=to_params(networks.weights(net), config), image_shape=(8, 8, 3)
    )


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, None),
        ({"norm_eps": 1e-6}, ["N1 norm_eps=1e-05"]),
        pytest.param(
            {"flip_sin_to_cos": True, "downsample_padding": 1},
            ["N3 flip_sin_to_cos=False", "N5 downsample_padding=0"],
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_a_config_that_is_not_the_networks_own(changes, names, libraries):
    net = networks.network(libraries, "ddpm")
    with libraries.torch.no_grad():  # where x is small, what is added to its variance counts
        net.conv_in.weight *= 1e-3
        net.conv_in.bias *= 1e-3
    result = against.compare_network(libraries, loaded_with(net, **changes), net)
    assert result.verdict == "same" if names is None else named(result) == names


@pytest.mark.campaign
def test_gradients_of_a_network_with_another_config(libraries):
    net = networks.network(libraries, "ddpm")
    lines = list(networks.compare_denoiser(libraries, "ddpm", net, dict(net.config) | {"freq_shift": 0}))
    assert [named(line) for line in lines] == [["N3 freq_shift=1"]] * 3


def test_settings_that_a_network_has_not_are_left_alone(libraries):
    for change in configs.CONVENTIONS.values():
        assert change({"activation_fn": "gelu"}) is None
    # These weights have no room for scale and shift.
    config = dict(networks.network(libraries, "ddpm").config) | {"resnet_time_scale_shift": "scale_shift"}
    with pytest.raises(ValueError, match="expected"):
        networks.OURS["UNet2DModel"][1](networks.weights(networks.network(libraries, "ddpm")), config)


# ------------------------------------------------------------------------------------------------------- nothing left


def test_no_guider_is_left_out(libraries):
    guiders = {name for name in dir(libraries.diffusers.guiders) if name.endswith("Guidance")} - {"BaseGuidance"}
    assert guiders == {name for _, _, name, _ in guidance.GUIDERS} | {
        name for name in guidance.ELSEWHERE if name.endswith("Guidance")
    }
