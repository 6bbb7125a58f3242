"""interop.load of folders of diffusers and names on the hub; what is wrong with a folder is one error naming it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax import samplers, schedules
from ddpm_jax.interop import autoencoder, diffusers, dit, load
from ddpm_jax.interop.diffusers import conditional
from tests.helpers import relative
from tests.interop.golden_networks import load as golden
from tests.interop.golden_networks import nhwc

STEM = "diffusion_pytorch_model"
DDPM = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}
UNET2D = ("UNet2DModel", diffusers.unet_from_config, diffusers.unet2d_to_params)
CONDITIONAL = ("UNet2DConditionModel", conditional.unet_from_config, conditional.unet2dcond_to_params)
NETWORKS = {
    "unet2d_ddpm_pad0": UNET2D,
    "unet2d_pad1_class_scaleshift": UNET2D,
    "unet2d_resnet_updown": UNET2D,
    "unet2dcond_sd1": CONDITIONAL,
    "unet2dcond_sd2_linear_class": CONDITIONAL,
    "dit_transformer2d": ("DiTTransformer2DModel", dit.transformer2d_from_config, dit.transformer2d_to_params),
}


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_model(folder: Path, class_name: str, config, weights) -> None:
    write(folder / "config.json", dict(config) | {"_class_name": class_name, "_diffusers_version": "0.42.1"})
    save_file(weights, folder / f"{STEM}.safetensors")


def write_pipeline(folder: Path, shared_golden, name="unet2d_ddpm_pad0", scheduler=DDPM, pipeline="DDPMPipeline"):
    """A folder of diffusers with a stored network; returns it."""
    _, meta, weights = golden(shared_golden, name)
    class_name = NETWORKS[name][0]
    part = "transformer" if class_name.startswith("DiT") else "unet"
    write_model(folder / part, class_name, meta["config"], weights)
    write(folder / "scheduler" / "scheduler_config.json", scheduler)
    parts = {part: ["diffusers", class_name], "scheduler": ["diffusers", scheduler.get("_class_name")]}
    write(folder / "model_index.json", {"_class_name": pipeline, **parts})
    return folder


@pytest.fixture
def folder(tmp_path, shared_golden):
    return write_pipeline(tmp_path / "ddpm", shared_golden)


def fails(path, *parts: str, kind: type[Exception] = ValueError, config=None) -> None:
    """One line that names the path."""
    with pytest.raises(kind) as error:
        load(path, config)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in (str(path), *parts)), message


def same_tree(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, tmp_path, shared_golden):
    """The model and parameters that the family's own functions give, whose outputs its tests compare."""
    _, meta, weights = golden(shared_golden, name)
    _, from_config, to_params = NETWORKS[name]
    config = meta["config"]
    learns = config["out_channels"] == 2 * config["in_channels"]
    scheduler = DDPM | ({"variance_type": "learned_range"} if learns else {})
    loaded = load(write_pipeline(tmp_path, shared_golden, name, scheduler))
    assert loaded.model == from_config(config)
    same_tree(loaded.params, to_params(weights, config))
    size = config["sample_size"]
    assert loaded.image_shape == (*((size, size) if isinstance(size, int) else size), config["in_channels"])
    assert loaded.origin == "a diffusers folder (DDPMPipeline)"
    assert loaded.first_stage is None


def test_output(folder, shared_golden, highest):
    """That of PyTorch, told the same times."""
    arrays, _, _ = golden(shared_golden, "unet2d_ddpm_pad0")
    output = jax.jit(load(folder).model_fn())(nhwc(arrays["in.x"]), jnp.asarray(arrays["in.t"], jnp.float32))
    assert relative(output, nhwc(arrays["out.sample"])) < 1e-4


COSINE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}
SCHEDULERS = {
    "DDPM's": ({}, ("eps", "fixed_small", 1.0), schedules.linear(1000)),
    "clipped elsewhere": ({"clip_sample_range": 2.0}, ("eps", "fixed_small", 2.0), schedules.linear(1000)),
    "a logarithm": ({"variance_type": "fixed_small_log"}, ("eps", "fixed_small", 1.0), schedules.linear(1000)),
    "v, cosine": (
        {"prediction_type": "v_prediction", "clip_sample": False, "variance_type": "fixed_large", **COSINE},
        ("v", "fixed_large", None),
        schedules.cosine(50),
    ),
    "x_0": (
        {"prediction_type": "sample", "num_train_timesteps": 20},
        ("x_0", "fixed_small", 1.0),
        schedules.linear(20),
    ),
    "DDIM": ({"_class_name": "DDIMScheduler"}, ("eps", "fixed_small", 1.0), schedules.linear(1000)),
    "PNDM does not clip": (
        {"_class_name": "PNDMScheduler", "clip_sample": True, "beta_schedule": "scaled_linear", "skip_prk_steps": True},
        ("eps", "fixed_small", None),
        schedules.quad(1000),
    ),
    "DPM-Solver": (
        {"_class_name": "DPMSolverMultistepScheduler", "trained_betas": [0.1, 0.2], "num_train_timesteps": 2},
        ("eps", "fixed_small", None),
        schedules.from_betas([0.1, 0.2]),
    ),
    # As diffusers writes it when one class is made from another; a null of a class that is gone.
    "of several classes": (
        {"_class_name": "DDIMScheduler", "skip_prk_steps": True, "solver_order": 3, "timestep_values": None},
        ("eps", "fixed_small", 1.0),
        schedules.linear(1000),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name, tmp_path, shared_golden):
    config, expected, schedule = SCHEDULERS[name]
    loaded = load(write_pipeline(tmp_path, shared_golden, scheduler={"_class_name": "DDPMScheduler"} | config))
    assert (loaded.prediction, loaded.variance, loaded.reading.clip) == expected
    # diffusers' alphas_cumprod are float32: the first betas are off by its rounding of 1 - alphas_cumprod.
    np.testing.assert_allclose(loaded.schedule.betas_float64, schedule.betas_float64, rtol=0, atol=2e-7)
    assert (
        loaded.scheduler_config is not None
        and loaded.scheduler_config.items() <= ({"_class_name": "DDPMScheduler"} | config).items()
    )
    assert loaded.default_sampler(1).table.num_calls == 1


def test_learned_variance(tmp_path, shared_golden):
    """Half of the outputs; schedulers that do not know of it see the other half alone."""
    _, meta, weights = golden(shared_golden, "unet2d_ddpm_pad0")
    wide = meta["config"] | {"out_channels": 6}
    for name in ("conv_out.weight", "conv_out.bias"):
        weights[name] = np.concatenate([weights[name], -weights[name]])
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    denoised = {}
    for kind, scheduler in {
        "fixed": {"_class_name": "DDIMScheduler"},
        "learned": {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
        "left out": {"_class_name": "DDIMScheduler", "variance_type": "learned_range"},
    }.items():
        write_pipeline(tmp_path / kind, shared_golden, scheduler=scheduler)
        if kind != "fixed":
            write_model(tmp_path / kind / "unet", "UNet2DModel", wide, weights)
        loaded = load(tmp_path / kind)
        assert loaded.image_shape == (8, 8, 3)
        assert loaded.variance == ("fixed_small" if kind == "fixed" else "learned_range")
        table, denoiser = loaded.default_sampler(2)
        row = jax.tree.map(lambda column: column[0], table.rows)
        denoised[kind] = jax.jit(denoiser(loaded.model_fn()))(x, row)
    np.testing.assert_allclose(denoised["left out"].x_0, denoised["fixed"].x_0, rtol=1e-5, atol=1e-5)
    assert denoised["left out"].noise_scale is None
    assert denoised["learned"].noise_scale is not None


def test_dit_samples_without_its_variance(tmp_path, shared_golden):
    """As diffusers' pipeline: the scheduler sees the first half of the channels."""
    loaded = load(write_pipeline(tmp_path, shared_golden, "dit_transformer2d", {"_class_name": "DDIMScheduler"}))
    assert loaded.variance == "learned_range" and loaded.image_shape == (8, 8, 4)
    table, denoiser = loaded.default_sampler(2)
    model_fn = loaded.model_fn(y=jnp.zeros(1, jnp.int32))
    assert samplers.sample(denoiser(model_fn), table, jax.random.key(0), (1, 8, 8, 4)).shape == (1, 8, 8, 4)


@pytest.mark.parametrize(
    ("name", "class_name", "part", "output"),
    [("autoencoder_kl", "AutoencoderKL", "vae", "decoded"), ("vqmodel", "VQModel", "vqvae", "decoded")],
)
@pytest.mark.parametrize("scale", (None, 2.0))
def test_first_stage(name, class_name, part, output, scale, folder, shared_golden, highest):
    """decode(scale z) is PyTorch's decoding of z."""
    arrays, meta, weights = golden(shared_golden, name)
    given = {} if scale is None else {"scaling_factor": scale}
    write_model(folder / part, class_name, meta["config"] | given, weights)
    index = json.loads((folder / "model_index.json").read_text())
    write(folder / "model_index.json", index | {part: ["diffusers", class_name]})
    first_stage = load(folder).first_stage
    assert first_stage is not None
    assert first_stage.scale == (0.18215 if scale is None else scale)
    z = nhwc(arrays["out.z" if name == "autoencoder_kl" else "out.latents"])
    assert relative(jax.jit(first_stage.decode)(first_stage.scale * z), nhwc(arrays[f"out.{output}"])) < 1e-4


def test_parts_at_the_top(folder):
    """As in the oldest published pipelines."""
    for path in (*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()):
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    assert load(folder).variance == "fixed_large"


def test_one_model(folder, shared_golden):
    """Without model_index.json; its scheduler beside it, given, or missing."""
    unet, (_, _, weights) = folder / "unet", golden(shared_golden, "unet2d_ddpm_pad0")
    fails(unet, "no scheduler_config.json", "config={'scheduler'", kind=FileNotFoundError)
    loaded = load(unet, {"scheduler": DDPM | {"prediction_type": "v_prediction"}})
    assert loaded.prediction == "v"
    assert loaded.origin == "a diffusers folder (a model by itself)"
    same_tree(diffusers.params_to_unet2d(loaded.params, loaded.config), weights)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", unet)
    assert load(unet).prediction == "eps"
    fails(unet, "the folder has its own", config={"scheduler": DDPM})
    fails(unet, "unknown setting for a diffusers folder 'sheduler'", "'scheduler'", config={"sheduler": DDPM})


def in_shards(unet: Path, kind: str = "safetensors", variant: str = "") -> dict[str, str]:
    """The folder's weights in two files and an index; returns its map."""
    weights = load_file(unet / f"{STEM}.safetensors")
    (unet / f"{STEM}.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"{STEM}-0000{1 + (i > 9)}-of-00002.{kind}" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == shard}, unet / shard)
    write(unet / f"{STEM}.{kind}.index{variant}.json", {"metadata": {}, "weight_map": where})
    return where


@pytest.mark.parametrize(("kind", "variant"), [("safetensors", ""), ("bin", ""), ("safetensors", ".fp16")])
def test_shards(kind, variant, folder):
    """Whatever their names end in: what they are is in their first bytes."""
    expected = load(folder).params
    shard = in_shards(folder / "unet", kind, variant)["conv_in.weight"]
    same_tree(load(folder).params, expected)
    (folder / "unet" / shard).unlink()
    fails(folder, shard, kind=FileNotFoundError)


def test_shards_elsewhere(folder):
    where = in_shards(folder / "unet")
    index = folder / "unet" / f"{STEM}.safetensors.index.json"
    write(index, {"weight_map": where | {"conv_in.bias": "../../secret.safetensors"}})
    fails(folder, "outside its folder: ../../secret.safetensors")
    write(index, {"metadata": {}})
    fails(folder, "has no weight_map")


def test_bin_of_pytorch(folder):
    torch = pytest.importorskip("torch")
    expected, path = load(folder).params, folder / "unet" / f"{STEM}.safetensors"
    torch.save({name: torch.from_numpy(array) for name, array in load_file(path).items()}, path.with_suffix(".bin"))
    path.unlink()
    same_tree(load(folder).params, expected)


def test_variants(folder):
    """The plain weights; else the only variant; else nobody knows which."""
    path = folder / "unet" / f"{STEM}.safetensors"
    half = {name: array.astype(np.float16) for name, array in load_file(path).items()}
    save_file(half, folder / "unet" / f"{STEM}.fp16.safetensors")
    assert not np.array_equal(load(folder).params["conv_in"]["kernel"], half["conv_in.weight"].transpose(2, 3, 1, 0))
    path.rename(folder / "unet" / f"{STEM}.non_ema.safetensors")
    fails(folder, "several variants of the weights, fp16, non_ema")
    (folder / "unet" / f"{STEM}.non_ema.safetensors").unlink()
    kernel = load(folder).params["conv_in"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, half["conv_in.weight"].transpose(2, 3, 1, 0))


def changed(path: Path, **settings) -> None:
    write(path, json.loads(path.read_text()) | settings)


def test_what_is_missing(folder, tmp_path):
    fails(tmp_path / "nowhere", "no file or folder", kind=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "no config.json", kind=FileNotFoundError)
    (folder / "unet" / f"{STEM}.safetensors").rename(folder / "unet" / "model.safetensors")
    fails(folder, "no weights in", kind=FileNotFoundError)
    (folder / "unet" / "config.json").unlink()
    fails(folder, "no config.json in", kind=FileNotFoundError)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "model_index.json").write_text('{"_class_name": "StableAudioPipeline", "vae": ["diffusers", "X"]}')
    fails(folder, "StableAudioPipeline has none of the networks known here: unet or transformer")


@pytest.mark.parametrize("name", ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"))
def test_damaged_json(name, folder):
    path = folder / name
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\xff" + content, content.replace(b"{", b"[")):
        path.write_bytes(damaged)
        fails(folder, Path(name).name)
    path.write_text("[1, 2]")
    fails(folder, f"{Path(name).name} must hold a mapping, got list")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("unet/config.json", {"_class_name": "SD3Transformer2DModel"}, "unknown class of network 'SD3Transformer2DMod"),
        ("unet/config.json", {"_class_name": ["UNet2DModel"]}, "unknown class of network"),
        ("unet/config.json", {"act_fn": "tanh"}, "act_fn='tanh'"),
        (
            "unet/config.json",
            {"layers_per_block": "2"},
            "config.json: layers_per_block must be a whole number",
        ),
        ("unet/config.json", {"layers_per_block": None}, "in [1, 16777216], or a list of such, got None"),
        ("unet/config.json", {"norm_num_groups": 0}, "norm_num_groups must be a whole number in [1, 16777216], got 0"),
        (
            "unet/config.json",
            {"block_out_channels": [16, 32.5]},
            "block_out_channels must be a list, each a",
        ),
        ("unet/config.json", {"sample_size": None}, "sample_size"),
        ("unet/config.json", {"sample_size": "8"}, "sample_size"),
        ("unet/config.json", {"layers_per_block": 2}, "weights do not fit the model: missing down_blocks"),
        (
            "unet/config.json",
            {"layers_per_block": 2000},
            "layers_per_block is 2000, for a file of 144 arrays",
        ),
        (
            "unet/config.json",
            {"sample_size": 10**6},
            "at most 67108864 pixels and 65536 channels, got 1000000 x 1000000",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10**9},
            "a whole number in [1, 16777216], got 10000",
        ),
        ("unet/config.json", {"out_channels": 6}, "variance_type 'fixed_large' is not learned"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDPMSchedule"}, "did you mean 'DDPMScheduler'"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "has no betas"),
        ("scheduler/scheduler_config.json", {"beta_stat": 0.1}, "did you mean 'beta_start'"),
        ("scheduler/scheduler_config.json", {"beta_start": "0.1"}, "beta_start must be a finite number, got '0.1'"),
        ("scheduler/scheduler_config.json", {"beta_start": 2.0}, "betas must lie in (0, 1)"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "lineal"}, "unknown beta_schedule 'lineal'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "unknown prediction_type 'flow'"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "is the variance itself there"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "two outputs for each channel"),
    ],
)
def test_settings_that_are_refused(name, settings, message, folder):
    changed(folder / name, **settings)
    fails(folder, message)


def test_first_stages_that_are_refused(folder, shared_golden):
    _, meta, weights = golden(shared_golden, "autoencoder_kl")
    write(folder / "model_index.json", {"_class_name": "X", "unet": [1, 2], "vae": [1, 2], "vqvae": [None, None]})
    for config, message in (
        ({"shift_factor": 0.1}, "vae/config.json: latents here are scaled only, got shift_factor"),
        ({"scaling_factor": "1"}, "scaling_factor must be a finite number, got '1'"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
    ):
        write_model(folder / "vae", "AutoencoderKL", meta["config"] | config, weights)
        fails(folder, message)
    write_model(folder / "vae", "AutoencoderTiny", meta["config"], weights)
    fails(folder, "unknown class of autoencoder 'AutoencoderTiny'")


def test_weights_of_another_architecture(folder, shared_golden):
    """Every array that is missing or left over is named."""
    _, _, weights = golden(shared_golden, "unet2d_resnet_updown")
    save_file(weights, folder / "unet" / f"{STEM}.safetensors")
    fails(folder, "weights do not fit the model", "missing down_blocks.0.downsamplers.0.conv.weight", "left over")


def test_damaged_weights(folder):
    """Cut anywhere, or one bit of the header changed: the same kind of error, from load as a whole."""
    path, random = folder / "unet" / f"{STEM}.safetensors", np.random.RandomState(0)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(8):
        path.write_bytes(content[: random.randint(len(content))])
        fails(folder)
        bad = bytearray(content)
        bad[random.randint(header)] ^= 1 << random.randint(8)
        path.write_bytes(bad)
        fails(folder)


def test_weights_in_double_precision(folder):
    path = folder / "unet" / f"{STEM}.safetensors"
    weights = load_file(path)
    save_file(weights | {"conv_in.bias": weights["conv_in.bias"].astype(np.float64)}, path)
    fails(folder, "weights must be float32, float16 or bfloat16, got float64 for conv_in/bias")


def test_errors_of_a_part_name_its_folder(folder, shared_golden):
    """autoencoder beside network: which one is damaged shows."""
    _, meta, weights = golden(shared_golden, "autoencoder_kl")
    write_model(folder / "vae", "AutoencoderKL", meta["config"], weights)
    write(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", "unet": [1, 2], "vae": [1, 2]})
    assert load(folder).first_stage.model == autoencoder.kl_from_config(meta["config"])
    (folder / "vae" / f"{STEM}.safetensors").write_bytes(b"")
    fails(folder, f"vae/{STEM}.safetensors", "empty")
