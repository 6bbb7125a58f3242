"""Random configurations of all scheduler classes beside the installed diffusers, and what the sweep itself finds."""

import inspect

import numpy as np
import pytest

from ddpm_jax.samplers.configs import CLASSES, from_diffusers_config
from ddpm_jax.tools.parity import double, draws, sweep
from ddpm_jax.tools.parity.draws import Case


def found(results):
    """Verdicts, counted; every different one is shown."""
    results = list(results)
    different = [f"{line.item}: {line.against}: {line.difference} {line.note}" for line in results]
    different = [text for text, line in zip(different, results, strict=True) if line.verdict == "different"]
    assert not different, "\n".join(different)
    return results


def test_random_configurations(libraries):
    results = found(sweep.judge(libraries, str(index), draws.draw(3, index)) for index in range(0, 240, 20))
    assert sum(line.difference is not None for line in results) >= 6


@pytest.mark.campaign
def test_many_random_configurations(libraries):
    """Ten or so of every class, most of which run on both sides."""
    results = found(sweep.compare(libraries, 240, seed=4))
    verdicts = [line.verdict for line in results]
    assert sum(line.difference is not None for line in results) > 170 and verdicts.count("explained") < 40


# ------------------------------------------------------------------------------------------------------ planted errors

CASE = Case("DDIMScheduler", {"clip_sample": False}, 4, {}, {"eta": 0.5})


def test_a_wrong_number_or_time_is_different(libraries, monkeypatch):
    assert sweep.judge(libraries, "", CASE).verdict == "same"

    def changed(**leaves):
        def wrong(*arguments, **options):
            preset = from_diffusers_config(*arguments, **options)
            rows = preset.table.rows
            rows = rows._replace(**{name: change(getattr(rows, name)) for name, change in leaves.items()})
            return preset._replace(table=preset.table._replace(rows=rows))

        monkeypatch.setattr(sweep, "from_diffusers_config", wrong)
        return sweep.judge(libraries, "", CASE)

    line = changed(update=lambda update: update * 1.0005)
    assert line.verdict == "different" and 1e-4 < line.difference < 1e-2 and "in float64" in line.note
    line = changed(time=lambda time: time + (time == 250))
    assert line.verdict == "different" and line.difference == np.inf and line.first_step == 2


def test_one_sided_failures_are_different_and_both_sided_ones_not(libraries, monkeypatch):
    unknown = CASE._replace(settings={"beta_schedule": "laplace"})
    line = sweep.judge(libraries, "", unknown)
    assert line.verdict == "same" and line.note.startswith("both refuse: unknown beta_schedule 'laplace'")

    def refuse(*_, **__):
        raise ValueError("no")

    accept = lambda config, *rest, **options: from_diffusers_config({"_class_name": "DDIMScheduler"}, *rest, **options)
    monkeypatch.setattr(sweep, "from_diffusers_config", accept)
    line = sweep.judge(libraries, "", unknown)
    assert line.verdict == "different" and "only diffusers fails: NotImplementedError: laplace" in line.note
    monkeypatch.setattr(sweep, "from_diffusers_config", refuse)
    line = sweep.judge(libraries, "", CASE)
    assert line.verdict == "different" and line.note == "only we refuse: no"


def test_rounding_is_explained_by_float64(libraries):
    """At the end of a cosine schedule diffusers' float32 is 5e-4 off its own float64."""
    settings = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}
    line = sweep.judge(libraries, "", Case("DEISMultistepScheduler", settings, 1, {}, {}))
    assert line.verdict == "explained" and line.difference > 1e-4 and "rounding: in float64" in line.note


def test_ancestral_steps_that_are_no_number_in_float32(libraries):
    line = sweep.judge(libraries, "", Case("KDPM2AncestralDiscreteScheduler", {"num_train_timesteps": 200}, 2, {}, {}))
    assert line.verdict in ("same", "explained")


def test_square_roots_of_another_processor(libraries, monkeypatch):
    """With the nearest roots diffusers tells the network another first time."""
    torch = libraries.torch
    betas = (1e-4 + 0.0201 * (np.arange(500) / 500) ** 1.5).tolist()
    case = Case("DPMSolverMultistepScheduler", {"num_train_timesteps": 500, "trained_betas": betas}, 4, {}, {})
    case.settings["use_beta_sigmas"] = True
    power = torch.Tensor.__pow__

    def nearest(x, exponent):
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy()))) if exponent == 0.5 else power(x, exponent)

    monkeypatch.setattr(torch.Tensor, "__pow__", nearest)
    assert not double.same_roots(torch)
    line = sweep.judge(libraries, "", case)
    assert line.verdict == "explained" and line.first_step == 0 and line.note == "square roots of another processor"
    assert torch.Tensor.__pow__ is nearest


# -------------------------------------------------------------------------------------------------------- what is drawn


def test_draws_reach_every_setting_and_are_the_same_again():
    assert str(draws.draw(0, 7)) == str(draws.draw(0, 7)) != str(draws.draw(1, 7))
    reached = {name: set() for name in draws.NAMES}
    for index in range(60 * len(draws.NAMES)):
        case = draws.draw(5, index)
        reached[case.name] |= case.settings.keys()
        assert not case.settings.keys() - CLASSES[case.name][1].keys()
    left = {"use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "solver_p", "shift_terminal", "tau_func"}
    for name, keys in reached.items():
        assert set(CLASSES[name][1]) - keys <= left | {"set_alpha_to_zero", "noise_sampler_seed"}, name


# What a class reads though its constructor does not name it: an old name.
UNNAMED = {"DDIMInverseScheduler": {"set_alpha_to_zero"}}


TORCHSDE = "DPMSolverSDEScheduler"


def test_settings_are_those_of_the_constructors(libraries):
    """No setting too many, and the same defaults: DDIMInverseScheduler has no thresholding."""
    for name, (_, defaults) in CLASSES.items():
        if name == TORCHSDE:
            continue  # without torchsde its constructor is nobody's
        parameters = inspect.signature(getattr(libraries.diffusers, name).__init__).parameters
        theirs = {key: p.default for key, p in parameters.items() if key not in ("self", "kwargs")}
        ours = {key: value for key, value in defaults.items() if key not in UNNAMED.get(name, ())}
        ours = {key: list(value) if isinstance(value, tuple) else value for key, value in ours.items()}
        assert ours == theirs, name


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_parallel_classes_take_the_same_steps(name):
    settings = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "thresholding": True}
    tables = [from_diffusers_config({"_class_name": n, **settings}, 7).table for n in _both(name)]
    np.testing.assert_array_equal(tables[0].rows.update, tables[1].rows.update)
    np.testing.assert_array_equal(tables[0].rows.time, tables[1].rows.time)


def _both(name):
    return f"{name}Scheduler", f"{name}ParallelScheduler"


def test_the_inverse_of_ddim_clips_and_does_not_threshold(libraries):
    """In 0.42.1 the class has no thresholding: its name is ignored there, and no setting here."""
    assert not {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"} & set(CLASSES[INVERSE][1])
    settings = {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "clip_sample_range": 0.6}
    assert sweep.judge(libraries, "", Case(INVERSE, settings, 6, {}, {})).verdict == "same"


INVERSE = "DDIMInverseScheduler"
