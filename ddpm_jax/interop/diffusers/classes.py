"""What a folder of diffusers has no setting for: the names of its classes, and which label stands for none of them.

They lie beside what diffusers reads, in ddpm_jax.json:

    {"classes": ["cat", "dog"], "null_label": 2}
"""

from pathlib import Path
from typing import Any

from flax import linen as nn

from ddpm_jax.conditions import ClassLabel
from ddpm_jax.names import unknown
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import Trained

FILE = "ddpm_jax.json"
NAMES = ("classes", "null_label")


def said(trained: Trained) -> dict[str, Any] | None:
    """The content of the file; None where there is nothing to say."""
    names, null = trained.classes, trained.conditions.null_label
    if names is None and null is None:
        return None
    return {"classes": None if names is None else list(names), "null_label": null}


def read(folder: Path, model: nn.Module) -> tuple[ClassLabel | None, tuple[str, ...] | None]:
    """(what the network is told, the names of its classes), each None where the file is absent or does not say it.

    Raises:
      ValueError: a file that does not fit the network.
    """
    if not (path := folder / FILE).is_file():
        return None, None
    found = read_json(path)
    for name in found:
        if name not in NAMES:
            raise unknown(f"setting in {path}", name, NAMES)
    null, names = found.get("null_label"), found.get("classes")
    num_classes = getattr(model, "num_classes", None)
    if num_classes is None:
        raise ValueError(f"{path} speaks of classes, and the network has none")
    if null is not None:
        num_classes = _checked_null(path, null, model, num_classes)
    if names is not None:
        _check_names(path, names, num_classes)
    return (None if null is None else ClassLabel(num_classes)), None if names is None else tuple(names)


def _checked_null(path: Path, null: Any, model: nn.Module, num_classes: int) -> int:
    """How many classes there are without the label for none of them, which is the network's last."""
    last = num_classes if getattr(model, "null_label", False) else num_classes - 1  # a DiT does not count it
    if null != last or isinstance(null, bool):
        raise ValueError(f"null_label in {path} must be the network's last label {last}, got {null!r}")
    return last


def _check_names(path: Path, names: Any, num_classes: int) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != num_classes:
        got = f"{len(names)} values" if isinstance(names, list) else repr(names)
        raise ValueError(f"classes in {path} must be {num_classes} names, one for each class, got {got}")
