"""Names of arrays and what is put around them: wrappers of networks, and words that say what is an average."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]

# Parts that DataParallel, torch.compile, FSDP and activation checkpointing add, anywhere in a name.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# The averages of latent-diffusion, whose names have no dots, and the numbers beside them.
EMA, COUNTERS = "model_ema.", ("decay", "num_updates")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
AVERAGES = (
    *("ema", "emas", "average", "averaged", "averaging", "avg", "swa", "shadow", "polyak"),
    *("emamodel", "modelema", "emanet", "netema", "unetema"),  # two words without a sign between them
)
PLAIN = ("online", "raw", "current", "non", "no", "without")


def unwrapped(weights: Weights) -> dict[str, np.ndarray]:
    """Under the names without what wrappers add to them, in any order and place.

    Raises:
      ValueError: two arrays have the same name then.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS) or name
        if is_average(short.split(".")[-2:-1]):  # where the rest of the name may have no dots
            short = re.sub("|".join(WRAPPERS[1:]), "", short)
        if short in found:
            raise ValueError(f"two arrays are {short} without the parts {', '.join(WRAPPERS)} of names")
        found[short] = array
    return found


def is_average(path: Sequence[str]) -> bool:
    """Whether keys and parts of names say that behind them is an average: the last that says anything does."""
    for part in reversed(path):
        words = [word.lower() for word in WORD.findall(part)]
        if any(word in PLAIN for word in words):
            return False
        if any(word in AVERAGES for word in words):
            return True
    return False
