"""`ddpm-jax parity`: planted differences of guidance, losses and networks are named, and nothing is left out."""

import inspect
import re
from pathlib import Path

import jax
import pytest

from ddpm_jax import guidance as ours
from ddpm_jax import objectives, process, schedules, weightings
from ddpm_jax.interop import Loaded
from ddpm_jax.tools.parity import (
    against,
    bounds,
    configs,
    guidance,
    loops,
    losses,
    networks,
    posteriors,
    recorded,
    search,
    shifts,
    tables,
    training,
    unread,
)
from ddpm_jax.tools.parity.guidance import Combined, Threshold
from ddpm_jax.tools.parity.losses import Form
from ddpm_jax.tools.parity.results import Difference, compared
from ddpm_jax.tools.parity.shifts import Shifted
from tests.helpers import GOLDEN

ROOT = Path(__file__).parent.parent.parent


def named(result):
    """The conventions in the note of an explained difference."""
    assert result.verdict == "explained" and result.difference > result.tolerance, result
    return result.note.split(" with ", 1)[1].split(" and ")


def test_a_difference_without_an_explanation_stays_one():
    line = compared("losses", "a", "b", Difference(0.5, 0), 1e-4)
    table = {"half": search.having(pixels="half sum")}
    assert search.explained(line, Form(), table, lambda form: 0.5) == line
    assert named(search.explained(line, Form(), table, lambda form: 5e-5)) == ["half"]
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


@pytest.mark.parametrize(
    ("name", "form", "names"),
    [
        ("loop_p_guided_p", Shifted("mean"), None),
        ("loop_p_guided_p", Shifted("score"), ["G4 mean + variance * gradient (algorithm 1)"]),
        ("loop_q_guided_p_fixed", Shifted("mean", at="mean"), ["G4 gradient at x_t"]),
        ("loop_q_guided_p_fixed", Shifted("mean", batch="mean"), ["G4 gradient of the batch's sum"]),
        ("loop_r_guided_ddim_eta0", Shifted("score"), None),
        (
            "loop_r_guided_ddim_eta0",
            Shifted("mean", clipping="after"),
            ["G4 eps - sigma * gradient (algorithm 2)", "G3 guided after clipping"],
        ),
        ("loop_s_guided_ddim_eta05", Shifted("score"), None),
    ],
)
def test_guidance_of_a_recorded_loop(name, form, names):
    result = guidance.compare_loop(GOLDEN, name, form, "")
    assert result.verdict == "same" if names is None else named(result) == names


# ------------------------------------------------------------------------------------------------------------ losses


def test_the_loss_that_sums_over_pixels(x64):
    each, mean, average = losses.compare_ddim(GOLDEN)
    assert named(each) == named(mean) == ["L1 sum over pixels"] and each.difference == pytest.approx(1 - 1 / 48)
    assert average.verdict == "same"
    halves = losses.line("", "", lambda form: abs(form.reduced(2.0, 48) - 48), ours=Form())
    assert named(halves) == ["L1 half the sum over pixels"]


def test_losses_of_edm(x64):
    assert [line.verdict for line in losses.compare_edm(GOLDEN)] == ["same"] * 3


def test_weights_of_min_snr(libraries):
    for prediction in ("eps", "x_0", "v"):
        assert losses.compare_min_snr(libraries, prediction).verdict == "same"
    for prediction, form, name in (
        ("v", Form(over="snr"), "L4 over SNR + 1, whatever is predicted"),
        ("eps", Form(over="1"), "L4 over SNR, whatever is predicted"),
    ):
        assert named(losses.compare_min_snr(libraries, prediction, form)) == [name]
    assert named(losses.compare_snr(libraries)) == ["S5 schedule in float32"]


def openai_losses(names):
    with jax.enable_x64(True):
        return {
            (line.item.split(",")[0], line.against.split(", ")[1].split(":")[0], "gradients" in line.item): line
            for line in bounds.compare(GOLDEN, losses.line, names)
        }


def test_losses_of_openai(monkeypatch):
    """At T = 200, T / 1000 and 1 times a term of the bound, and T times it, are different losses."""
    monkeypatch.setattr(bounds, "MEANS", {"EPSILON": "eps"})
    monkeypatch.setattr(bounds, "FIXED", ())
    monkeypatch.setattr(
        bounds, "OBJECTIVES", tuple((name, ("LEARNED_RANGE",), t) for name, _, t in bounds.OBJECTIVES[1:])
    )
    lines = openai_losses(("openai/training_losses_cosine200_rescaled",))
    assert len(lines) == 8
    for gradients in (False, True):
        assert lines["hybrid", "RESCALED_MSE", gradients].verdict == lines["vlb", "KL", gradients].verdict == "same"
        assert named(lines["hybrid", "MSE", gradients]) == ["L2 vlb times 1"]
        assert named(lines["vlb", "RESCALED_KL", gradients]) == ["L2 T times the single term"]


def test_bounds_of_openai(x64):
    names = (bounds.TERMS[1], *bounds.PRIORS, bounds.BOUNDS[2])
    lines = list(bounds.compare(GOLDEN, losses.line, names))
    assert len(lines) == 5 and {line.verdict for line in lines} == {"same"}, lines
    nats = lambda *arguments: losses.line(*arguments, ours=Form(unit="nats"))
    assert all(line.verdict == "different" for line in bounds.compare(GOLDEN, nats, names[-1:]))


@pytest.mark.slow
def test_all_losses(libraries):
    for line in losses.compare(libraries, GOLDEN):
        assert line.verdict != "different", line


def test_steps_of_openai():
    lines = [line for line in posteriors.compare(GOLDEN) if line.verdict != "not compared"]
    assert len(lines) == 10 and {line.verdict for line in lines if "predict" not in line.item} == {"same"}
    for line in lines[3::4][:2]:
        assert "predict" in line.item and line.verdict == "explained" and "rounding" in line.note


# ---------------------------------------------------------------------------------------------------------- networks


def loaded_with(net, **changes):
    """What is read of a network of diffusers whose config says something else of it."""
    config = dict(net.config) | changes
    from_config, to_params, _ = networks.OURS[type(net).__name__]
    return Loaded(
        "a test", config=config, model=from_config(config), params=to_params(networks.weights(net), config),
        schedule=schedules.linear(1000), prediction="eps", variance="fixed_small", image_shape=(8, 8, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, None),
        ({"norm_eps": 1e-6}, ["N1 norm_eps=1e-05"]),
        pytest.param(
            {"flip_sin_to_cos": True, "downsample_padding": 1},
            ["N3 flip_sin_to_cos=False", "N5 downsample_padding=0"],
            marks=pytest.mark.slow,
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


@pytest.mark.slow
def test_gradients_of_a_network_with_another_config(libraries):
    net = networks.network(libraries, "ddpm")
    lines = list(networks.compare_denoiser(libraries, "ddpm", net, dict(net.config) | {"freq_shift": 0}))
    assert [named(line) for line in lines] == [["N3 freq_shift=1"]] * 3


@pytest.mark.slow
def test_a_recorded_network_with_another_config(monkeypatch):
    shared = ROOT.parent / "shared" / "golden"
    if not shared.is_dir():
        pytest.skip(f"golden networks are not at {shared}")
    how = recorded.NETWORKS["unet2d_ddpm_pad0"]._replace(changes={"downsample_padding": 1})
    assert named(recorded.compare_one(shared, "unet2d_ddpm_pad0", how)) == ["N5 downsample_padding=0"]


def test_settings_that_a_network_has_not_are_left_alone(libraries):
    for change in configs.CONVENTIONS.values():
        assert change({"activation_fn": "gelu"}) is None
    # These weights have no room for scale and shift.
    config = dict(networks.network(libraries, "ddpm").config) | {"resnet_time_scale_shift": "scale_shift"}
    with pytest.raises(ValueError, match="expected"):
        networks.OURS["UNet2DModel"][1](networks.weights(networks.network(libraries, "ddpm")), config)


# ------------------------------------------------------------------------------------------------------- nothing left


def everything():
    """Items and reasons of all groups that need neither PyTorch nor recordings to be known, as one text."""
    parts = [*guidance.ELSEWHERE, *losses.ELSEWHERE, *posteriors.ELSEWHERE, *unread.ELSEWHERE]
    sources = (bounds, guidance, shifts, losses, posteriors, tables)
    return "\n".join([*parts, *(inspect.getsource(module) for module in sources)])


def test_no_public_function_is_left_out():
    text = everything()
    helpers = {"mean_over_pixels", "batched", "check_output", "error_factor", "make"}  # parts of those that are
    for module in (ours, objectives, weightings, process):
        for name, function in inspect.getmembers(module, lambda each: callable(each) and not inspect.isclass(each)):
            here = getattr(function, "__module__", None) == module.__name__
            if here and not name.startswith("_") and name not in helpers:
                short = module.__name__.rsplit(".", 1)[-1]
                found = re.search(rf"\b{short}\.{name}\b|[\"']{name}\b", text)
                assert found, f"{short}.{name} is neither compared nor listed"


def test_no_guider_is_left_out(libraries):
    guiders = {name for name in dir(libraries.diffusers.guiders) if name.endswith("Guidance")} - {"BaseGuidance"}
    assert guiders == {name for _, _, name, _ in guidance.GUIDERS} | {
        name for name in guidance.ELSEWHERE if name.endswith("Guidance")
    }


@pytest.mark.parametrize("where", ["repository", "shared"])
def test_no_recording_is_left_out(where):
    folder = GOLDEN if where == "repository" else ROOT.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"golden files are not at {folder}")
    read = {
        *loops.LOOPS, *bounds.FILES, *posteriors.REVERSE, "other/ddim_loss_ema", "other/edm_losses",
        *(f"other/{name}" for name in recorded.ELSEWHERE),
        *(f"openai/{name}" for name, _, _ in shifts.LOOPS), *(file for file, _ in tables.RECORDED),
        *(f"networks/{name}" for name in recorded.NETWORKS), *(f"training/{name}" for name in training.RUNS),
        *(name.removeprefix("recorded ") for name in losses.ELSEWHERE if name.startswith("recorded ")),
    }  # fmt: skip
    for path in folder.glob("*/*"):
        name = str(path.relative_to(folder).with_suffix(""))
        name = name.removesuffix(".init").removesuffix(".final").removesuffix(".ema")
        assert name in read or name.startswith(tuple(unread.ELSEWHERE)), f"{name} is neither compared nor listed"
