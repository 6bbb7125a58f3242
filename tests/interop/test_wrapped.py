"""Weights as trainings save them: in mappings, behind prefixes, beside optimizers and averages."""

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.interop import contents, dit, ldm, load
from ddpm_jax.interop.diffusers import load as load_diffusers
from ddpm_jax.interop.ldm import load as load_ldm
from tests.interop.golden_networks import load as golden
from tests.interop.test_load import fails, same_tree
from tests.interop.test_load_files import LATENTS, latent_diffusion, moving_averages  # noqa: F401

HEADS = {"num_heads": 4}
FLAT = "final_layer.linear.bias"


@pytest.fixture(scope="module")
def network(shared_golden):
    """(weights, parameters of them, parameters of plus(weights))."""
    _, meta, weights = golden(shared_golden, "dit_learn_sigma")
    return weights, dit.dit_to_params(weights, meta["config"]), dit.dit_to_params(plus(weights), meta["config"])


def plus(weights):
    """What an average of them might be: other numbers, and the constant."""
    return {name: array if name == "pos_embed" else array + np.float32(1) for name, array in weights.items()}


def prefixed(prefix, weights):
    return {prefix + name: array for name, array in weights.items()}


def without_dots(prefix, weights):
    """As latent-diffusion's average has them: of what is trained."""
    kept = {prefix + name.replace(".", ""): array for name, array in weights.items() if name != "pos_embed"}
    return kept | {f"{prefix}decay": np.array(0.999, np.float32), f"{prefix}num_updates": np.array(7, np.int32)}


def tensors(value, torch):
    """The same with tensors for arrays."""
    if isinstance(value, dict):
        return {key: tensors(item, torch) for key, item in value.items()}
    if isinstance(value, list):
        return [tensors(item, torch) for item in value]
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


@pytest.fixture
def saved(tmp_path):
    torch = pytest.importorskip("torch")

    def save(content):
        torch.save(tensors(content, torch), tmp_path / "a.pt")
        return tmp_path / "a.pt"

    return save


# ------------------------------------------------------------------------------------------------------------ averages

KEYS = (
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "net_ema", "averaged_model"),
    *("modelEMA", "EMAModel", "shadow", "ema_0.9999", "swa_model", "model_avg", "emaWeights", "moving_average"),
    *("modelema", "emamodel"),
)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("plain", ("model", "state_dict"))
def test_an_average_beside_the_weights(key, plain, network, saved):
    """In either order it is taken, and said."""
    weights, _, average = network
    for content in ({plain: weights, key: plus(weights)}, {key: plus(weights), plain: weights}):
        loaded = load(saved(content), HEADS)
        same_tree(loaded.params, average)
        assert loaded.origin == f"facebookresearch/DiT; weights: the average, {key}, not {plain}"


AVERAGED = {
    "lucidrains": lambda w: {
        "step": 3, "model": prefixed("model.", w), "opt": {"state": {0: {"exp_avg": w[FLAT]}}}, "version": "1",
        "ema": prefixed("online_model.model.", w) | prefixed("ema_model.model.", plus(w))
        | {"initted": np.array(True), "step": np.array(3)},
    },
    "one_mapping": lambda w: prefixed("model.", w) | prefixed("ema.", plus(w)),
    "lightning": lambda w: {
        "state_dict": prefixed("net.", w), "optimizer_states": [{"state": {}}], "epoch": 1, "hyper_parameters": {},
        "callbacks": {"EMA{'decay': 0.99}": {"ema_state_dict": prefixed("net.", plus(w)), "decay": 0.99}},
    },
    "swa": lambda w: {"model": w, "swa": prefixed("module.", plus(w)) | {"n_averaged": np.array(4)}},
    "without_dots": lambda w: {"state_dict": prefixed("model.", w) | without_dots("model_ema.", plus(w))},
    "without_dots_compiled": lambda w: {
        "state_dict": prefixed("model._orig_mod.", w) | without_dots("model_ema._orig_mod", plus(w))
    },
    "without_dots_outer": lambda w: prefixed("model.inner.", w) | without_dots("model_ema.inner", plus(w)),
    "trained_only": lambda w: {"model": w, "ema": {n: a for n, a in plus(w).items() if n != "pos_embed"}},
    "score_sde": lambda w: {
        "optimizer": {"state": {}}, "model": prefixed("module.", w), "step": 9,
        "ema": {"decay": 0.99, "num_updates": 3, "shadow_params": list(plus(w).values())},
    },
    "score_sde_trained": lambda w: {
        "model": w, "ema": {"shadow_params": [a for n, a in plus(w).items() if n != "pos_embed"]}
    },
    "basicsr": lambda w: {"params": w, "params_ema": plus(w)},
    "non_ema": lambda w: {"non_ema": w, "ema": plus(w)},
    "several": lambda w: {"model": w, "ema": [plus(w), w]},
    "by_other_words": lambda w: {"model_without_ema": w, "best": {"ema": {"model": plus(w), "decay": 0.9}}},
    "alone": lambda w: {"ema": plus(w)},
    "ddim": lambda w: [w, {"state": {}}, 3, 100, plus(w)],
}  # fmt: skip


@pytest.mark.parametrize("kind", AVERAGED)
def test_averages_as_projects_save_them(kind, network, saved):
    weights, _, average = network
    loaded = load(saved(AVERAGED[kind](weights)), HEADS)
    same_tree(loaded.params, average)
    assert ("weights: the average, " in loaded.origin) == (kind != "alone"), loaded.origin


def test_an_average_in_a_file_of_arrays_alone(network, tmp_path):
    weights, plain, average = network
    for path, content, expected in (
        ("a", AVERAGED["one_mapping"](weights), average),
        ("b", prefixed("model.", weights) | without_dots("model_ema.", plus(weights)), average),
        ("c", prefixed("model.", weights) | {"ema.decay": np.array(0.9, np.float32)}, plain),
    ):
        save_file(content, tmp_path / path)
        same_tree(load(tmp_path / path, HEADS).params, expected)


NO_AVERAGES = {
    "a_number": {"ema": 0.999, "ema_decay": 0.9},
    "counters": {"ema": {"decay": np.array(0.9), "num_updates": 3}},
    "none": {"ema": None, "model_ema": {}},
    "of_an_optimizer": {"adam": {"exp_avg": {"x_embedder.proj.weight": np.ones(3)}}, "opt_ema": {"a": np.ones(3)}},
    "a_schema": {"schema": {"a": np.zeros(3)}, "remap": [np.zeros(3)]},
}


@pytest.mark.parametrize("kind", NO_AVERAGES)
def test_what_is_no_average(kind, network, saved):
    weights, plain, _ = network
    loaded = load(saved({"model": weights} | NO_AVERAGES[kind]), HEADS)
    same_tree(loaded.params, plain)
    assert loaded.origin == "facebookresearch/DiT"


NEVER_IN_SILENCE = {
    "other_names": (lambda w: {"model": w, "ema": {"weight_0": w[FLAT]}}, "not known here: ema;"),
    "list_of_another": (lambda w: {"model": w, "ema": {"shadow_params": [w[FLAT]]}}, "its 1 arrays do not fit"),
    "swapped": (lambda w: {"model": w, "ema": list(w.values())[::-1]}, "do not fit those of the network in their"),
    "some": (
        lambda w: prefixed("model.", w) | {k: a for k, a in without_dots("model_ema.", w).items() if "blocks0" in k},
        "model_ema has averages of 10 of the",
    ),
    "in_one_mapping": (lambda w: prefixed("model.", w) | {"ema.x.weight": w[FLAT]}, "not known here: ema.x.weight;"),
    "misses_one": (lambda w: {"model": w, "ema": {n: a for n, a in w.items() if n != FLAT}}, f"missing {FLAT}"),
    "list_alone": (lambda w: {"decay": 1, "shadow_params": [w[FLAT]]}, "1 arrays without names in shadow_params"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NEVER_IN_SILENCE)
def test_the_plain_weights_are_never_taken_in_silence(kind, network, saved):
    content, message = NEVER_IN_SILENCE[kind]
    fails(saved(content(network[0])), message, config=HEADS)


UNET = "model.diffusion_model."
LATENT = {
    "mapping": lambda w, inner: {"state_dict": w, "ema": prefixed(UNET, inner)},
    "wrapper": lambda w, inner: {"state_dict": w, "ema": prefixed("diffusion_model.", inner)},
    "network": lambda w, inner: {"state_dict": w, "ema": inner},
    "list": lambda w, inner: {"state_dict": w, "ema": {"shadow_params": list(inner.values())}},
    "one_mapping": lambda w, inner: w | prefixed("model_ema.diffusion_model.", inner),
}


@pytest.mark.parametrize("kind", LATENT)
def test_averages_beside_latent_diffusion(kind, latent_diffusion):  # noqa: F811
    """Of the U-Net; the first stage and the betas are those beside."""
    weights = {name: array for name, array in latent_diffusion[0].items() if not name.startswith("model_ema.")}
    inner = {name.removeprefix(UNET): array + 1 for name, array in weights.items() if name.startswith(UNET)}
    found, said = contents.network_weights(LATENT[kind](weights, inner))
    expected = weights | prefixed(UNET, inner)
    assert found.keys() == expected.keys() and said.startswith("weights: the average, ")
    assert all(found[name] is expected[name] for name in expected)
    found, said = contents.network_weights(LATENT[kind](weights, inner), use_average=False)
    assert all(found[name] is array for name, array in weights.items()) and "not " in said


def test_averages_of_latent_diffusion(latent_diffusion, saved):  # noqa: F811
    """Its own, in a mapping and behind wrappers; use_ema chooses, and the origin says which."""
    weights, unet, _ = latent_diffusion
    config, averages = LATENTS | {"unet_config": unet}, moving_averages(weights)
    path = saved({"state_dict": prefixed("module.", weights | averages), "epoch": 3})
    inner = {name.removeprefix(UNET): array for name, array in weights.items() if name.startswith(UNET)}
    plain = ldm.unet_to_params(inner, unet)
    loaded = load(path, config)
    same_tree(loaded.params, jax.tree.map(lambda leaf: leaf + np.float32(1), plain))
    assert loaded.first_stage is not None and "; weights: the average, model_ema" in loaded.origin
    found, said = load_ldm._unet_weights(weights | averages, use_ema=False)
    assert (
        all(found[name] is array for name, array in inner.items()) and said == "; weights: not the average, model_ema"
    )
    fails(saved(weights | {"model_ema.other": np.zeros(3)}), "moving averages of 0 of the", config=config)


# ------------------------------------------------------------------------------------------------ prefixes, containers

PREFIXES = (
    *("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.", "module.module._orig_mod.", "model.", "net."),
    *("model._orig_mod.", "_orig_mod.model.", "model.module.net._orig_mod.", "_fsdp_wrapped_module.", "any.thing."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_in_a_file(prefix, network, tmp_path):
    weights, plain, _ = network
    save_file(prefixed(prefix, weights), tmp_path / "a")
    loaded = load(tmp_path / "a", HEADS)
    same_tree(loaded.params, plain)
    assert loaded.origin == "facebookresearch/DiT"


def test_wrappers_inside_of_names(network, tmp_path):
    """torch.compile and FSDP of each block."""
    weights, plain, _ = network
    inside = {re.sub(r"^blocks\.(\d)\.", r"blocks.\1._orig_mod.attn_and_mlp.", name): name for name in weights}
    inside = {new.replace("attn_and_mlp.", "_checkpoint_wrapped_module."): weights[old] for new, old in inside.items()}
    save_file(inside, tmp_path / "a")
    same_tree(load(tmp_path / "a", HEADS).params, plain)
    save_file(weights | prefixed("module.", weights), tmp_path / "a")
    fails(tmp_path / "a", "two arrays are", config=HEADS)


# As diffusers has them: of U-Nets, DiT and autoencoders.
FOLDERS = {
    "conv_in.weight": ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.bias"),
    "pos_embed.proj.weight": ("pos_embed.proj.weight", "transformer_blocks.0.attn1.to_q.weight"),
    "encoder.conv_in.weight": ("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.bias"),
}


@pytest.mark.parametrize("prefix", ("", *PREFIXES, "unet.", "ema_model.", "student.", "model.denoise_fn."))
def test_prefixes_in_the_weights_of_a_folder(prefix, tmp_path):
    for signature, names in FOLDERS.items():
        weights = {name: np.full(i + 1, i, np.float32) for i, name in enumerate(names)}
        save_file(prefixed(prefix, weights), tmp_path / "diffusion_pytorch_model.safetensors")
        found, said = load_diffusers._weights(tmp_path, signature)
        assert found.keys() == weights.keys() and said == ""
        for name in names:
            np.testing.assert_array_equal(found[name], weights[name])


FOLDER_BIN = {
    "state_dict": (lambda w: {"state_dict": w, "epoch": 3}, ""),
    "accelerate": (lambda w: {"module": prefixed("_orig_mod.", w)}, ""),
    "lightning": (lambda w: {"state_dict": prefixed("unet.", w), "hyper_parameters": {"lr": 0.1}}, ""),
    "scalars": (lambda w: w | {"step": 3, "n_averaged": np.array(4)}, ""),
    "average": (lambda w: {"model": plus(w), "ema": w}, "weights: the average, ema, not model"),
    "ema_model": (
        lambda w: {"unet": plus(w), "ema": {"decay": 0.9, "shadow_params": list(w.values())}},
        "weights: the average, ema.shadow_params, not unet",
    ),
    "latent": (
        lambda w: prefixed("unet.", w) | {"vae.encoder.conv_in.weight": np.ones(2)},
        "weights: unet, not vae.encoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDER_BIN)
def test_what_is_around_the_weights_of_a_folder(kind, saved, tmp_path):
    weights = {name: np.full(i + 1, i, np.float32) for i, name in enumerate(FOLDERS["conv_in.weight"])}
    wrap, expected = FOLDER_BIN[kind]
    saved(wrap(weights)).rename(tmp_path / "diffusion_pytorch_model.bin")
    found, said = load_diffusers._weights(tmp_path, "conv_in.weight")
    assert found.keys() == weights.keys() and said == expected
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)


BESIDE = {"epoch": 3, "lr": 1e-4, "note": "words", "flag": True, "nothing": None, "sizes": (1, 2), "step": np.array(5)}
OPTIMIZER = {"state": {0: {"step": np.array(3.0), "exp_avg": np.zeros((2, 3))}}, "param_groups": [{"lr": 0.1}]}
CONTAINERS = ("model_state_dict", "state_dict", "net", "network", "unet", "model", "module", "generator", "my_weights")


@pytest.mark.parametrize("key", CONTAINERS)
def test_mappings_around_the_weights(key, network, saved):
    weights, plain, _ = network
    training = BESIDE | {"optimizer": OPTIMIZER, "opt": OPTIMIZER, "optimizer_state_dict": {"named": weights}}
    for content in (
        {key: weights} | training,
        {key: prefixed("model.", weights) | {"extra": 1}} | training,
        {"checkpoint": {"inner": {key: weights}}, **training},
    ):
        loaded = load(saved(content), HEADS)
        same_tree(loaded.params, plain)
        assert loaded.origin == "facebookresearch/DiT"
    same_tree(load(saved(weights | BESIDE), HEADS).params, plain)


def test_what_stands_beside_the_network_is_said(network, tmp_path):
    weights, plain, _ = network
    save_file(prefixed("model.", weights) | {"betas": np.zeros(9), "loss.w": np.zeros(2)}, tmp_path / "a")
    loaded = load(tmp_path / "a", HEADS)
    same_tree(loaded.params, plain)
    assert loaded.origin == "facebookresearch/DiT; left out beside it: 2 arrays, betas, loss.w"


def test_two_networks(network, saved):
    """The usual name is meant, and said; of two other names none is."""
    weights, plain, average = network
    loaded = load(saved({"teacher": plus(weights), "model": weights}), HEADS)
    same_tree(loaded.params, plain)
    assert loaded.origin == "facebookresearch/DiT; weights: model, not teacher"
    loaded = load(saved({"a": {"state_dict": plus(weights), "current_model_state": weights}}), HEADS)
    same_tree(loaded.params, average)
    path = saved({"teacher": plus(weights), "student": weights})
    fails(path, "several networks, teacher and student: save the one that you mean by itself", config=HEADS)


def test_a_word_in_a_file_of_arrays(network, tmp_path):
    """Beside the weights, or in the place of one."""
    weights, plain, _ = network
    np.savez(tmp_path / "a.npz", **weights, note=np.array("words"), step=np.array(3))
    same_tree(load(tmp_path / "a.npz", HEADS).params, plain)
    np.savez(tmp_path / "a.npz", **weights | {"pos_embed": np.zeros(weights["pos_embed"].shape, "M8[s]")})
    fails(tmp_path / "a.npz", "pos_embed", config=HEADS)


def test_a_hostile_file_of_containers(saved, tmp_path):
    """The same list twice in itself over and over is looked at once; without end, refused; many networks too."""
    torch = pytest.importorskip("torch")
    twice: list = [torch.zeros(2)]
    for _ in range(60):
        twice = [twice, twice]
    torch.save({"ema": twice}, tmp_path / "a.pt")
    fails(tmp_path / "a.pt", "not arrays by name: ema")
    endless: dict = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "a.pt")
    fails(tmp_path / "a.pt", "containers in each other without end")
    fails(saved({f"{i}.x_embedder.proj.weight": np.zeros(1) for i in range(65)}), "65 networks in one mapping")
