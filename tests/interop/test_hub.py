"""Names on the Hugging Face Hub, with a local stand-in for it."""

import shutil
import sys
import types
from pathlib import Path

import pytest

from ddpm_jax.interop import flax_weights, load, load_first_stage
from ddpm_jax.interop.hub import OF_PROJECT, fetch
from tests.interop.test_load import STEM, fails, same_tree, write_pipeline


@pytest.fixture
def folder(tmp_path, shared_golden):
    return write_pipeline(tmp_path / "ddpm", shared_golden)


class Hub(types.ModuleType):
    """Stands for huggingface_hub: a repository is a folder, of which a snapshot has the files that are asked for."""

    def __init__(self, source: Path, cache: Path):
        super().__init__("huggingface_hub")
        self.source, self.cache, self.calls = source, cache, []

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns):
        filter_names = pytest.importorskip("huggingface_hub.utils").filter_repo_objects
        self.calls.append((repo_id, revision))
        names = [str(path.relative_to(self.source)) for path in self.source.rglob("*") if path.is_file()]
        for name in filter_names(names, allow_patterns=allow_patterns):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.source / name, self.cache / name)
        return str(self.cache)


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub.utils")
    stand_in = Hub(folder, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return stand_in


def downloaded(hub: Hub) -> set[str]:
    return {path.name for path in hub.cache.rglob("*") if path.is_file()}


JSON = {"model_index.json", "config.json", "scheduler_config.json"}


def test_names_on_the_hub(hub, folder):
    """Configurations and one form of the weights, and nothing else that a repository has."""
    for name in (f"unet/{STEM}.bin", f"unet/{STEM}.fp16.safetensors", "sd-v1-4.ckpt", "text_encoder/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    same_tree(load("hf:google/ddpm-cifar10-32").params, load(folder).params)
    assert hub.calls == [("google/ddpm-cifar10-32", None)]
    assert downloaded(hub) == JSON | {f"{STEM}.safetensors"}
    load("hf:google/ddpm-cifar10-32@refs/pr/3")
    assert hub.calls[1:] == [("google/ddpm-cifar10-32", "refs/pr/3")]


@pytest.mark.parametrize("name", (f"{STEM}.bin", f"{STEM}.fp16.safetensors"))
def test_other_weights_on_the_hub(name, hub, folder):
    (folder / "unet" / f"{STEM}.safetensors").rename(folder / "unet" / name)
    load("hf:google/ddpm-cifar10-32")
    assert downloaded(hub) == JSON | {name}


@pytest.mark.parametrize("name", ["sd_tiny", "ldm_text2img_tiny"])
def test_the_text_encoder_of_a_pipeline_on_the_hub(name, shared_golden, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub.utils")
    pytest.importorskip("tokenizers")
    source = shared_golden / "uses" / name
    stand_in = Hub(source, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    found, expected = load("hf:owner/sd"), load(source)
    assert found.weights == expected.weights
    (ids,), (known,) = (trained.text.tokens(["the dog"]).ids for trained in (found, expected))
    assert list(ids) == list(known) and "merges.txt" in downloaded(stand_in)


def test_hub_errors(hub, folder, monkeypatch):
    for name in ("hf:ddpm", "hf:a/b/c", "hf:/b", "hf:a/b@"):
        fails(name, "hf:owner/name")
    (folder / "unet" / f"{STEM}.safetensors").unlink()
    fails("hf:a/b", "no model of diffusers", kind=FileNotFoundError)

    def offline(*args, **options):
        raise ConnectionError("no way to the hub\nand more about it")

    hub.snapshot_download = offline
    fails("hf:a/b", "no way to the hub", kind=FileNotFoundError)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'ddpm-jax\[hub\]'"):
        load("hf:a/b")


def test_what_another_call_has_fetched_is_not_what_is_asked_for(hub, folder):
    """Flax's weights, and then PyTorch's of the same repository."""
    weights = folder / "unet" / f"{STEM}.safetensors"
    shutil.copy(weights, weights.with_suffix(".bin"))
    shutil.copy(weights, weights.with_name(flax_weights.NAME))
    weights.unlink()
    for forms, name in (("flax", flax_weights.NAME), ("pytorch", f"{STEM}.bin")):
        fetch("owner/name", forms=OF_PROJECT[forms])
        assert name in downloaded(hub)


def test_forms_of_weights():
    with pytest.raises(ValueError, match=r"unknown form 'Flax'; did you mean 'flax'"):
        load_first_stage("hf:owner/name", "Flax")
