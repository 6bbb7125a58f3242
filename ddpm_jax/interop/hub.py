"""Checkpoints on the Hugging Face Hub, by name: "google/ddpm-cifar10-32" or "google/ddpm-cifar10-32@revision"."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ddpm_jax.interop import flax_weights
from ddpm_jax.interop.diffusers import texts, weights
from ddpm_jax.samplers.configs.reading import read_json

# The parts of a pipeline that are read, the old ones at the top; and in this order, until there are weights: those that
# can run no code, PyTorch's, other variants, Flax's.
PARTS = ("", "unet/", "transformer/", "vae/", "vqvae/", "movq/")
STEM = weights.DIFFUSERS["bin"]


def _forms(stems: Mapping[str, str], flax: str) -> tuple[tuple[str, ...], ...]:
    """The names of the files of weights, form by form."""
    safe, torch = stems["safetensors"], stems["bin"]
    return (
        (f"{safe}.safetensors", f"{safe}-*-of-*.safetensors"),
        (f"{torch}.bin", f"{torch}-*-of-*.bin"),
        (f"{safe}.*.safetensors",),
        (flax,),
    )


Forms = tuple[tuple[str, ...], ...]
WEIGHTS = _forms(weights.DIFFUSERS, flax_weights.NAME)
OF_PROJECT: Mapping[str, Forms] = {"pytorch": WEIGHTS[:-1], "flax": WEIGHTS[-1:]}
OF_TEXTS = _forms(weights.TRANSFORMERS, texts.FLAX)


def fetch(name: str, parts: tuple[str, ...] = PARTS, forms: Forms = WEIGHTS) -> Path:
    """The folder in the local cache with the configurations and weights of a repository, downloaded if they are not.

    Args:
      name: owner/name or owner/name@revision, a branch, tag or commit.
      parts: the folders whose weights are wanted, "vae/"; "" is the top. Text encoders come with all of them only.
      forms: the names of files of weights, in the order in which they are tried.

    Raises:
      ValueError: another form of name.
      FileNotFoundError: no such repository or revision, no way to it, or no weights in it.
      ImportError: huggingface_hub is not installed.
    """
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")) or name.endswith("@"):
        raise ValueError(f"a name on the hub must be hf:owner/name or hf:owner/name@revision, got {'hf:' + name!r}")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ImportError("names on the hub need huggingface_hub: pip install 'ddpm-jax[hub]'") from error

    def download(wanted: list[str]) -> Path:
        try:
            return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
        except OSError as error:
            said = str(error).strip() or type(error).__name__
            raise FileNotFoundError(f"hf:{name}: {said.splitlines()[0]}") from error

    wanted = ["*.json"]
    for tried, patterns in enumerate(forms, 1):
        wanted += [part + pattern for part in parts for pattern in patterns]
        folder = download(wanted)
        models = [folder / part for part in parts if (folder / part / "config.json").is_file()]
        # Beside the parts of a pipeline, a config.json at the top is no model's.
        models = [model for model in models if model != folder] or models
        # What another call has left there of other forms does not count.
        if models and all(_has_weights(model, forms[:tried]) for model in models):
            if parts == PARTS:
                _fetch_texts(download, wanted, folder)
            return folder
    raise FileNotFoundError(
        f"hf:{name} is no model of diffusers: it has no config.json with {STEM}.safetensors or .bin, "
        f"or {flax_weights.NAME}"
    )


def _fetch_texts(download: Callable[[list[str]], Path], wanted: list[str], folder: Path) -> None:
    """The text encoder and the tokenizer of a pipeline, where it has one that is read."""
    index = folder / "model_index.json"
    part, name = (texts.part_of(read_json(index)) if index.is_file() else None) or ("", "")
    if not part or name not in texts.KINDS[part].classes:
        return
    for patterns in OF_TEXTS:
        wanted = [*wanted, "tokenizer/*", *(f"{part}/{pattern}" for pattern in patterns)]
        download(wanted)
        if any(path.suffix in (".safetensors", ".bin", ".msgpack") for path in (folder / part).glob("*")):
            return


def _has_weights(folder: Path, forms: Forms) -> bool:
    return any(any(folder.glob(pattern)) for patterns in forms for pattern in patterns)
