"""What scheduler_config.json says, as people have it: of other classes, of 2022, null, infinite, misspelt."""

import json
from math import inf

import numpy as np
import pytest

from ddpm_jax.samplers import from_diffusers_config
from ddpm_jax.samplers.configs import CLASSES, read

# stabilityai/stable-diffusion-xl-base-1.0, but for the numbers of its betas.
SDXL = {
    **{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_schedule": "scaled_linear"},
    **{"clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000, "sample_max_value": 1.0},
    **{"prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1},
    **{"timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False},
}


def of(name, **settings):
    return {"_class_name": f"{name}Scheduler", **settings}


def same(config, expected, num_steps=5):
    """One table; and one x_0 of a network that predicts more than any image has."""
    found, wanted = from_diffusers_config(config, num_steps), from_diffusers_config(expected, num_steps)
    for column, other in zip(found.table.rows, wanted.table.rows, strict=True):
        np.testing.assert_array_equal(column, other)
    assert found.table.init == wanted.table.init
    row = type(found.table.rows)(*(column[1] for column in found.table.rows))
    x = np.linspace(-9, 9, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    for one, other in zip(*(p.denoiser(lambda x, t: 3 * x)(x, row)[:2] for p in (found, wanted)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", CLASSES)
def test_settings_of_all_classes_in_each(name):
    """Where diffusers makes one scheduler from another it writes the settings of both."""
    theirs = {key: value for _, settings in CLASSES.values() for key, value in settings.items()}
    foreign = {key: value for key, value in theirs.items() if key not in CLASSES[name][1]}
    given = {"_class_name": name, "_name_or_path": "x", **foreign, "shift": 3.0, "snr_shift_scale": 1.0, "_x": {}}
    assert read(given) == (name, {})
    assert read(given | {"eta": 0.5})[1] == ({"eta": 0.5} if name == "RePaintScheduler" else {})


def test_published_euler():
    own = {key: value for key, value in SDXL.items() if key in CLASSES["EulerDiscreteScheduler"][1]}
    assert read(SDXL) == ("EulerDiscreteScheduler", own)
    same(SDXL, of("EulerDiscrete", beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"))


@pytest.mark.parametrize("value", [-inf, "-inf", "-Infinity", "-INF"])
def test_infinity_of_a_default(value):
    """Number or text, and in a file that is no JSON, as diffusers writes it."""
    same(of("DPMSolverMultistep", lambda_min_clipped=value), of("DPMSolverMultistep"))
    _, settings = read(of("SASolver", lambda_min_clipped=value))
    assert settings == {"lambda_min_clipped": -inf}


def test_infinity_in_a_file(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text('{"_class_name": "DPMSolverSinglestepScheduler", "lambda_min_clipped": -Infinity}')
    assert read(path) == read(tmp_path) == ("DPMSolverSinglestepScheduler", {"lambda_min_clipped": -inf})
    same(path, of("DPMSolverSinglestep"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (of("DDPM", predict_epsilon=False, tensor_format="pt"), of("DDPM", prediction_type="sample")),
        (of("DDIM", predict_epsilon=True, timestep_values=None), of("DDIM")),
        (of("DDPM", predict_epsilon=False, prediction_type="v_prediction"), of("DDPM", prediction_type="v_prediction")),
        (of("DDPM", timesteps=300, clip_predicted_image=False), of("DDPM", num_train_timesteps=300, clip_sample=False)),
        (of("DDIM", timesteps=300, num_train_timesteps=200), of("DDIM", num_train_timesteps=200)),
        (of("DPMSolverMultistep", denoise_final=True, predict_epsilon=True), of("DPMSolverMultistep")),
        (of("PNDM", num_inference_steps=50, clip_sample=True, skip_prk_steps=True), of("PNDM", skip_prk_steps=True)),
        # Null where nobody reads it, or where it is false.
        (of("DDPM", thresholding=None, sample_max_value=None, variance_type=None), of("DDPM")),
        (of("DDIM", clip_sample=None, clip_sample_range=None), of("DDIM", clip_sample=False)),
        (of("DDIM", clip_sample=0, set_alpha_to_one=1), of("DDIM", clip_sample=False)),
        (
            of("LMSDiscrete", trained_betas=np.full(1000, 0.01, np.float64), beta_schedule=None, beta_start=None),
            of("LMSDiscrete", trained_betas=[0.01] * 1000),
        ),
        (of("EulerDiscrete", prediction_type="original_sample"), of("EulerDiscrete", prediction_type="sample")),
        # As diffusers keeps in memory what was left at the defaults of another class.
        (of("DDIM", clip_sample=False, beta_end=0.01, _use_default_values=["clip_sample"]), of("DDIM", beta_end=0.01)),
        (of("DDPM", trained_betas=[0.01] * 1000, beta_schedule="laplace"), of("DDPM", trained_betas=[0.01] * 1000)),
    ],
)
def test_what_is_meant(given, meant):
    same(given, meant)
    assert read(given)[1].get("prediction_type", "epsilon") == meant.get("prediction_type", "epsilon")


def test_old_names_change_what_is_drawn():
    """Guards the comparison above."""
    with pytest.raises(AssertionError):
        same(of("DDPM", predict_epsilon=False), of("DDPM"))
    with pytest.raises(AssertionError):
        same(of("DDIM", timesteps=300), of("DDIM"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_end": 1}, "must have _class_name, one of DDPMScheduler"),
        (of("DDPN"), "did you mean 'DDPMScheduler'"),
        (of("DDPM", beta_stat=0.1), "unknown setting of DDPMScheduler 'beta_stat'; did you mean 'beta_start'"),
        (of("DDPM", clip_sampl=False), "did you mean 'clip_sample'"),
        (of("DDPM", beta_start="0.1"), "beta_start must be a finite number, got '0.1'"),
        (of("DDPM", beta_start=inf), "beta_start must be a finite number, got inf"),
        (of("DDPM", beta_start="inf"), "beta_start must be a finite number, got 'inf'"),
        (of("DDPM", beta_start=None), "beta_start must be a finite number, got None"),
        (of("DDPM", thresholding=True, sample_max_value=None), "sample_max_value must be a finite number, got None"),
        (of("DDPM", clip_sample="false"), "clip_sample must be true or false, got 'false'"),
        (of("DDPM", predict_epsilon="yes"), "predict_epsilon must be true or false, got 'yes'"),
        (of("DDPM", timesteps=[1, 2]), "num_train_timesteps must be a whole number in [1, 16777216], got [1, 2]"),
        (
            of("DPMSolverMultistep", lambda_min_clipped="Infinity"),
            "lambda_min_clipped must be a finite number or -inf, got inf",
        ),
        (
            of("DPMSolverMultistep", lambda_min_clipped="low"),
            "lambda_min_clipped must be a finite number or -inf, got 'low'",
        ),
        (
            of("DPMSolverMultistep", lambda_min_clipped=float("nan")),
            "lambda_min_clipped must be a finite number or -inf, got nan",
        ),
        (of("EulerDiscrete", sigma_max=inf), "sigma_max must be a finite number, got inf"),
        (of("DDIM", beta_schedule="sigmoid"), "unknown beta_schedule 'sigmoid'"),
        (of("PNDM", beta_schedule="laplace"), "unknown beta_schedule 'laplace'"),
        ([1], "a scheduler's configuration is a mapping, its file or its folder, got [1]"),
    ],
)
def test_refused(config, message):
    with pytest.raises(ValueError) as error:
        from_diffusers_config(config, 5)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(FileNotFoundError, match=r"no scheduler_config\.json in"):
        read(tmp_path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ValueError, match=r"scheduler_config\.json is a pointer of git-lfs.*run `git lfs pull` in"):
        from_diffusers_config(tmp_path, 5)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"scheduler_config\.json must hold a mapping, got list"):
        read(tmp_path)


def test_unipc_without_a_corrector_at_its_first_step():
    """A list whose numbers start at 0."""
    table = from_diffusers_config(of("UniPCMultistep", disable_corrector=[0]), 5).table
    assert np.any(table.rows.update != from_diffusers_config(of("UniPCMultistep"), 5).table.rows.update)


def test_json_of_what_was_read():
    """What is read of a file is a file again."""
    for name in CLASSES:
        settings = read({"_class_name": name, **CLASSES[name][1]})[1]
        again = read(json.loads(json.dumps({"_class_name": name, **settings})))[1]
        assert json.dumps(again) == json.dumps(settings)
