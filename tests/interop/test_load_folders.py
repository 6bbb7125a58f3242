"""interop.load of folders as people have them: any scheduler, settings beside those of the network, checkpoints."""

import dataclasses
import json
import shutil
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax import interop, models, samplers, schedules
from ddpm_jax.interop.diffusers import load as load_diffusers
from ddpm_jax.process import LEARNED
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.samplers.configs import CLASSES, from_diffusers_config
from ddpm_jax.tools.parity.draws import draw
from ddpm_jax.trained import Trained
from tests.helpers import trained_of

SHAPE = (4, 4, 3)
NO_BETAS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "IPNDMScheduler")
NO_BETAS += ("CMStochasticIterativeScheduler", "ScoreSdeVeScheduler")
AVERAGE = {
    **{"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 500, "power": 0.75},
    **{"update_after_step": 0, "use_ema_warmup": True},
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def random_params(model, shape, *time, **given):
    """Parameters of which none is zero, made without a compilation."""
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), *time, **given)["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * random.standard_normal(leaf.shape).astype(np.float32), template)


def loaded_of(out_channels=3, **settings) -> Trained:
    model = models.UNet(
        channels=4, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=2, dropout=0.0,
        out_channels=out_channels,
    )  # fmt: skip
    return trained_of(model=model, params=random_params(model, SHAPE, jnp.zeros(1)), image_shape=SHAPE, **settings)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "folder"
    interop.save_diffusers(path, loaded_of())
    return path


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "folder")


def write(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def quick(folder, monkeypatch):
    """The folder, whose network is read only once: what is asked about here is its scheduler."""
    params, table = interop.load(folder).params, load_diffusers.NETWORKS["UNet2DModel"]
    read_once = dataclasses.replace(table, to_params=lambda weights, config: params)
    monkeypatch.setitem(load_diffusers.NETWORKS, "UNet2DModel", read_once)
    return folder


def with_scheduler(folder, config):
    write(folder / "scheduler" / "scheduler_config.json", config)
    return folder


def changed(path, **settings) -> None:
    write(path, json.loads(path.read_text()) | settings)


def fails(path, *parts, kind=ValueError, config=None) -> None:
    with pytest.raises(kind) as error:
        interop.load(path, config)
    assert "\n" not in str(error.value) and all(part in str(error.value) for part in (str(path), *parts)), error.value


def network(x, t):
    return 3 * x


def x_0_of(denoiser, rows, f=network):
    """Of one image, at every row."""
    x = jnp.linspace(-9, 9, 48).reshape(1, *SHAPE)
    return jax.vmap(lambda row: denoiser(f)(x, row).x_0)(rows)


def preset_or_error(make):
    try:
        return make()
    except ValueError as error:
        return str(error)


def agree(folder, config, num_steps) -> bool:
    """Whether load and from_diffusers_config take this configuration, both or neither, and make the same of it."""
    found = preset_or_error(lambda: interop.load(with_scheduler(folder, config)).default_sampler(num_steps))
    expected = preset_or_error(lambda: from_diffusers_config(config, num_steps))
    if isinstance(found, str) or isinstance(expected, str):
        assert isinstance(found, str) and isinstance(expected, str), (config, found, expected)
        return False
    jax.tree.map(np.testing.assert_array_equal, found.table, expected.table)
    rows = jax.tree.map(lambda column: column[:2], found.table.rows)
    np.testing.assert_array_equal(x_0_of(found.denoiser, rows), x_0_of(expected.denoiser, rows))
    return True


# -------------------------------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_draws_or_says_what_to_use(name, quick):
    config = {"_class_name": name}
    if name in NO_BETAS:
        fails(
            with_scheduler(quick, config),
            f"{name} has no betas",
            "such as DDPMScheduler",
            "samplers.from_diffusers_config",
        )
        return
    assert agree(quick, config, 5)
    loaded = interop.load(quick)
    table, denoiser = loaded.default_sampler(5)
    quiet = denoiser(lambda x, t: 0.1 * x)
    assert np.isfinite(samplers.sample(quiet, table, jax.random.key(0), (1, *SHAPE))).all()


POOL = {
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid", "exp", "lineal", None],
    "prediction_type": ["epsilon", "v_prediction", "sample", "original_sample", "flow"],
    "timestep_spacing": ["leading", "trailing", "linspace", "even"],
    "num_train_timesteps": [20, 100, 1000, "1000"],
    "trained_betas": [None, [0.01] * 20, [0.1, 0.2]],
    "rescale_betas_zero_snr": [False, True, None],
    "clip_sample": [False, True, None, 1],
    "clip_sample_range": [1.0, 2, None],
    "thresholding": [False, True, None],
    "sample_max_value": [1.0, 1.5, None],
    "variance_type": ["fixed_small", "fixed_large", "fixed_small_log", None],
    "final_sigmas_type": ["zero", "sigma_min"],
    "algorithm_type": ["dpmsolver++", "dpmsolver", "deis", "data_prediction"],
    "solver_type": ["midpoint", "heun", "bh2", "logrho"],
    "use_karras_sigmas": [False, True, None],
    "lambda_min_clipped": [-inf, "-inf", -5.1, inf],
    "predict_epsilon": [True, False, None],
    "timesteps": [20, 1000, None],
    "steps_offset": [0, 1],
    "set_alpha_to_one": [True, False],
    "tensor_format": ["pt"],
    "eta": [0.0, 0.5],
    "shift": [3.0],
    "beta_stat": [None, 0.1],
    "solver_order": [1, 2, 3],
}


def test_load_and_from_diffusers_config_agree(quick):
    random = np.random.default_rng(0)
    names = [name for name in CLASSES if name not in NO_BETAS]
    taken = 0
    for i in range(150):
        keys = random.permutation(len(POOL))[: random.integers(1, 6)]
        config = {key: values[random.integers(len(values))] for key, values in (list(POOL.items())[k] for k in keys)}
        taken += agree(quick, {"_class_name": names[i % len(names)], **config}, 6)
    assert 40 < taken < 130


def test_they_agree_on_the_configurations_that_are_swept(quick):
    """Those of `parity --random`, but for classes without betas and variances that this network has not learned."""
    cases = [draw(1, index) for index in range(110)]
    cases = [case for case in cases if case.name not in NO_BETAS and case.num_steps is not None]
    cases = [case for case in cases if case.settings.get("variance_type") not in LEARNED]
    plain = lambda value: value.tolist() if hasattr(value, "tolist") else value
    taken = [
        agree(quick, {"_class_name": case.name} | {k: plain(v) for k, v in case.settings.items()}, case.num_steps)
        for case in cases
    ]
    assert len(taken) > 60 and sum(taken) > 40


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver_pp_2m", "euler", "heun"])
@pytest.mark.parametrize("settings", [{}, {"sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}])
def test_thresholding_holds_for_a_named_sampler(name, settings, quick):
    scheduler = {"_class_name": "DDIMScheduler", "thresholding": True, "clip_sample": False, **settings}
    loaded = interop.load(with_scheduler(quick, scheduler))
    ratio, most = loaded.reading.threshold
    assert (ratio, most) == (0.9, 1.5) if settings else (0.995, 1.0)
    rows = make_table(name, loaded.schedule, 5, variance=loaded.variance).rows
    found = x_0_of(loaded.denoiser, rows)
    assert np.abs(found).max() <= 1
    np.testing.assert_array_equal(found, x_0_of(loaded.default_sampler(5).denoiser, rows))
    assert (
        np.abs(x_0_of(interop.load(with_scheduler(quick, {**scheduler, "thresholding": False})).denoiser, rows)).max()
        > 5
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True}, (0.995, 1.0)),
        ({"_class_name": "UniPCMultistepScheduler", "thresholding": True, "predict_x0": False}, None),
        ({"_class_name": "TCDScheduler", "thresholding": True, "clip_sample": True}, None),
        ({"_class_name": "EulerDiscreteScheduler", "thresholding": True}, None),
    ],
)
def test_thresholding_of_classes(settings, expected, quick):
    """Where the class reads it."""
    loaded = interop.load(with_scheduler(quick, settings))
    assert (loaded.reading.threshold, loaded.reading.clip) == (expected, None)


def test_other_settings_hold_for_a_named_sampler(quick):
    """Range of the clipping, prediction, zero SNR: each changes x_0 of a named sampler."""
    base = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}
    plain = interop.load(with_scheduler(quick, base))
    wide = interop.load(with_scheduler(quick, base | {"clip_sample_range": 2.0}))
    rows = make_table("ddim", plain.schedule, 5).rows
    assert (np.abs(x_0_of(plain.denoiser, rows)).max(), np.abs(x_0_of(wide.denoiser, rows)).max()) == (1, 2)
    v = interop.load(with_scheduler(quick, base | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    assert (v.prediction, v.schedule.alphas_cumprod[-1], plain.schedule.alphas_cumprod[-1] > 0) == ("v", 0, True)
    old = interop.load(with_scheduler(quick, base | {"predict_epsilon": False}))
    assert old.prediction == "x_0" and old.scheduler_config["prediction_type"] == "sample"


def test_the_index_names_the_class_of_a_scheduler_that_does_not(folder):
    """As the pipelines of diffusers take it."""
    changed(folder / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    loaded = interop.load(with_scheduler(folder, {"beta_end": 0.01, "skip_prk_steps": True}))
    assert loaded.scheduler_config == {"_class_name": "PNDMScheduler", "beta_end": 0.01, "skip_prk_steps": True}
    for nothing in ([], [None, None], None):
        changed(folder / "model_index.json", scheduler=nothing)
        fails(folder, "scheduler_config.json: ", "DDPMScheduler")


def test_a_learned_variance_is_no_logarithm_in_diffusers(tmp_path):
    """DDPM's "learned": noise of that variance, with the folder's sampler and with a named one."""
    schedule = schedules.linear(1000)
    config = {"_class_name": "DDPMScheduler", "variance_type": "learned", "timestep_spacing": "leading"}
    written = loaded_of(6, variance="learned_variance", scheduler_config=config, schedule=schedule)
    interop.save_diffusers(tmp_path / "x", written)
    loaded = interop.load(tmp_path / "x")
    assert (loaded.reading.variance, loaded.image_shape) == ("learned_variance", SHAPE)
    two = lambda x, t: jnp.concatenate([0.1 * x, jnp.full_like(x, 0.04)], axis=-1)
    own, rows = loaded.default_sampler(5), make_table("ddpm_learned", loaded.schedule, 5).rows
    x, row = jnp.ones((1, *SHAPE)), jax.tree.map(lambda column: column[1], rows)
    for denoiser in (own.denoiser, loaded.denoiser):
        np.testing.assert_allclose(denoiser(two)(x, row).noise_scale, 0.2, rtol=1e-6)


def test_a_learned_variance_that_the_scheduler_does_not_read(tmp_path):
    """DPM-Solver of a network that predicts v: the variance is left, as for eps."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned_range"}
    for prediction in ("epsilon", "v_prediction"):
        path = tmp_path / prediction
        scheduler = config | {"prediction_type": prediction}
        interop.save_diffusers(path, loaded_of(6, variance="learned_range", scheduler_config=scheduler))
        own = interop.load(path).default_sampler(3)
        two = lambda x, t: jnp.concatenate([0.1 * x, 7 * x], axis=-1)
        alone = from_diffusers_config({"_class_name": config["_class_name"], "prediction_type": prediction}, 3)
        expected = x_0_of(alone.denoiser, alone.table.rows, lambda x, t: 0.1 * x)
        np.testing.assert_array_equal(x_0_of(own.denoiser, own.table.rows, two), expected)


# ------------------------------------------------------------------------------------------------------------ saving


def test_thresholding_is_written(tmp_path):
    """By a network without a scheduler of its own."""
    interop.save_diffusers(tmp_path / "a", loaded_of(clip=None, threshold=(0.9, 1.5)))
    config = json.loads((tmp_path / "a" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["thresholding"], config["dynamic_thresholding_ratio"], config["sample_max_value"]) == (
        True,
        0.9,
        1.5,
    )
    assert interop.load(tmp_path / "a").reading.threshold == (0.9, 1.5)


def test_infinities_are_not_written(folder, tmp_path):
    """They are no JSON, and the default."""
    name, minus = "DPMSolverMultistepScheduler", "-Infinity"
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(f'{{"_class_name": "{name}", "lambda_min_clipped": {minus}, "thresholding": true}}')
    loaded = interop.load(folder)
    interop.save_diffusers(tmp_path / "again", loaded)
    text = (tmp_path / "again" / "scheduler" / "scheduler_config.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["thresholding"] is True
    jax.tree.map(
        np.testing.assert_array_equal,
        interop.load(tmp_path / "again").default_sampler(5).table,
        loaded.default_sampler(5).table,
    )


# ----------------------------------------------------------------------------------------------- networks, checkpoints


@pytest.fixture
def checkpoint(folder, tmp_path):
    """What accelerate writes while diffusers' script trains: the network twice, once averaged, and no pipeline."""
    path = tmp_path / "output" / "checkpoint-500"
    for name in ("unet", "unet_ema"):
        shutil.copytree(folder / "unet", path / name)
    weights = path / "unet_ema" / "diffusion_pytorch_model.safetensors"
    save_file({name: array / 2 for name, array in load_file(weights).items()}, weights)
    changed(path / "unet_ema" / "config.json", **AVERAGE)
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (path / name).write_bytes(b"x")
    return path


def test_the_average_of_a_checkpoint(checkpoint, folder):
    fails(
        checkpoint, "no model_index.json and no config.json", "holds unet/ and unet_ema/: name one of them",
        str(checkpoint / "unet_ema"), kind=FileNotFoundError,
    )  # fmt: skip
    shutil.copytree(checkpoint, checkpoint.parent / "checkpoint-90")
    last = f"holds {checkpoint.name}/unet/ and {checkpoint.name}/unet_ema/: name one of them"  # not the 90th, stopped
    fails(checkpoint.parent, last, str(checkpoint / "unet_ema"), kind=FileNotFoundError)
    fails(checkpoint / "unet_ema", "no scheduler_config.json", "config={'scheduler'", kind=FileNotFoundError)
    for given in ({"_class_name": "DDPMScheduler"}, folder / "scheduler", str(folder / "scheduler")):
        loaded = interop.load(checkpoint / "unet_ema", {"scheduler": given})
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b / 2), loaded.params, interop.load(folder).params)
    assert not AVERAGE.keys() & loaded.config.keys()


def test_the_scheduler_of_a_checkpoint_is_that_of_its_pipeline(checkpoint):
    """Beside the checkpoints, where the script saves the pipeline when it has trained; one that is given wins."""
    write(checkpoint.parent / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", "beta_end": 0.01})
    assert interop.load(checkpoint / "unet_ema").scheduler_config == {"_class_name": "DDIMScheduler", "beta_end": 0.01}
    given = {"scheduler": {"_class_name": "DDPMScheduler"}}
    assert interop.load(checkpoint / "unet_ema", given).scheduler_config == given["scheduler"]


@pytest.mark.parametrize("given", [5, None, [1], "nowhere", {"beta_end": 0.02}])
def test_no_scheduler(given, checkpoint):
    kind = FileNotFoundError if given in (None, "nowhere") else ValueError
    with pytest.raises(kind, match=r"scheduler|nowhere") as error:
        interop.load(checkpoint / "unet", {"scheduler": given})
    assert "\n" not in str(error.value)


def test_settings_beside_those_of_the_network(folder):
    """Null, false, or of the average: they change nothing. Others are named, all of them."""
    expected = interop.load(folder)
    config = folder / "unet" / "config.json"
    before = config.read_text()
    changed(config, **AVERAGE, not_there_yet=None, use_memory_efficient_attention=False)
    found = interop.load(folder)
    assert found.model == expected.model and found.config == expected.config
    for value in (0, True, "x", 1.5, [1]):
        config.write_text(before)
        changed(config, gate=value, decay=0.9, window=3)
        fails(folder, f"config.json: not a UNet2DModel that is known here: gate={value!r}, window=3")


def test_settings_beside_those_of_dit_and_of_autoencoders(tmp_path):
    """Those of the published DiT and of the training of an autoencoder; an unknown one is named there too."""
    model = models.DiT(
        width=8, depth=1, num_heads=2, num_classes=3, out_channels=4, time_endpoint=True, condition_per_block=True
    )
    stage = models.AutoencoderKL(channels=4, channel_multipliers=(1,), num_res_blocks=1, num_groups=2)
    params = random_params(model, (4, 4, 4), jnp.zeros(1), y=jnp.zeros(1, jnp.int32))
    first_stage = interop.FirstStage(stage, random_params(stage, SHAPE), 0.5)
    loaded = trained_of(model=model, params=params, image_shape=(4, 4, 4), first_stage=first_stage)
    interop.save_diffusers(tmp_path / "x", loaded)
    network, vae = (tmp_path / "x" / part / "config.json" for part in ("transformer", "vae"))
    changed(network, dropout=0.1, norm_num_groups=32, cross_attention_dim=None, only_cross_attention=False)
    changed(network, attention_type="default", use_linear_projection=False)
    changed(vae, sample_size=256, force_upcast=True, shift_factor=None, **AVERAGE)
    assert interop.load(tmp_path / "x").model == dataclasses.replace(model, base_size=2)  # its own grid, said
    changed(vae, use_tiling=True)
    fails(tmp_path / "x", "config.json: not an AutoencoderKL that is known here: use_tiling=True")
    changed(network, attention_type="gated", num_layer=2)
    fails(tmp_path / "x", "not a DiTTransformer2DModel that is known here:", "attention_type='gated'", "num_layer=2")


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"])
def test_pointers_of_git_lfs(name, folder):
    (folder / name).write_text(POINTER)
    fails(folder, name.split("/")[-1], "git-lfs", "run `git lfs pull` in")
