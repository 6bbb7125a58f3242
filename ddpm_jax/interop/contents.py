"""The weights of a network among what a training has saved with them.

A network is found by the names of its arrays, whatever is around it: mappings ("state_dict", "model"), first parts of
names (Lightning's "model.", "ema_model."), and what wrappers add to them. Optimizers, counters and settings are left
aside. Where there is an average of the weights it is taken, and never the plain weights in silence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ddpm_jax.interop.wrapped import COUNTERS, EMA, Weights, is_average, unwrapped

UNET, INPUT = "model.diffusion_model.", "input_blocks.0.0.weight"
# One array of each network known here: DiT, ermongroup/ddim, and OpenAI's, which is latent-diffusion's within UNET.
SIGNATURES = ("x_embedder.proj.weight", "temb.dense.0.weight", INPUT)
CONSTANTS = ("pos_embed",)  # of a network, which no training changes and no average need have
# Where there are several networks, the one under the first of these keys is meant.
USUAL = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "unet", "denoiser", "module")
# What an optimizer has for every weight too, under the names of weights or by number.
OPTIMIZER = re.compile(r"opt(_.*)?$|.*optim|exp_avg|adam|grad|momentum", re.IGNORECASE)
DEPTH, MOST = 6, 64  # of containers in each other; of items of a list, and of networks in one mapping


@dataclass(frozen=True, eq=False)
class Network:
    """Arrays with the names of a network, and the keys and parts of names before them."""

    path: tuple[str, ...]
    weights: dict[str, np.ndarray]
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join(self.path) or "what is not in a mapping"

    @property
    def rank(self) -> int:
        last = self.path[-1] if self.path else ""
        return -1 if not last else USUAL.index(last) if last in USUAL else len(USUAL)

    @property
    def of_unet(self) -> list[str]:
        """The names that an average of it has."""
        latent = [name for name in self.weights if name.startswith(UNET)]
        return latent or list(self.weights)

    @property
    def is_latent(self) -> bool:
        return any(name.startswith(UNET) for name in self.weights)


@dataclass
class Seen:
    """What is in a file: networks, averages as lists in order of parameters, and averages of unknown names."""

    networks: list[Network] = field(default_factory=list)
    lists: list[tuple[tuple[str, ...], list[np.ndarray]]] = field(default_factory=list)
    others: list[tuple[str, ...]] = field(default_factory=list)
    signatures: Sequence[str] = SIGNATURES
    containers: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        return len(self.networks) + len(self.lists) + len(self.others)


def network_weights(
    found: Any, use_average: bool = True, signatures: Sequence[str] = SIGNATURES
) -> tuple[dict[str, np.ndarray], str]:
    """(arrays by name of the network in what a file holds, what is to be said of the choice, or "").

    Arrays that are of no network known here come as they are.

    Args:
      found: mappings and lists in each other, with arrays.
      use_average: take the average of the weights where there is one.
      signatures: one array of each network that may be meant.

    Raises:
      ValueError: no arrays by name; an average of which the names are not known; several networks.
    """
    seen = Seen(signatures=signatures)
    _look_into(found, (), seen)
    if not seen.networks:
        return _as_they_are(found, seen), ""
    plain = sorted((network for network in seen.networks if not is_average(network.path)), key=lambda found: found.rank)
    averages = [_completed(network, plain) for network in seen.networks if is_average(network.path)]
    use_average = use_average or not plain
    unused = [".".join(path) for path, _ in seen.lists]
    if not averages and use_average:
        averages, unused = [_matched(path, arrays, plain) for path, arrays in seen.lists], []
    if seen.others and not averages and use_average:
        raise ValueError(
            f"beside the weights, {plain[0]}, there is an average of which the names are not known here: "
            f"{'.'.join(seen.others[0])}; save the one that you mean by itself"
        )
    taken = (averages if averages and use_average else plain)[0]
    alike = [network for network in plain if network.rank == taken.rank]
    if taken in alike and len(alike) > 1:
        raise ValueError(f"several networks, {' and '.join(map(str, alike))}: save the one that you mean by itself")
    rest = [str(network) for network in (*averages, *plain) if network is not taken] + unused
    said = [f"weights: {'the average, ' * (taken in averages)}{taken}, not {' or '.join(rest)}"] if rest else []
    if taken.left_out:
        named = ", ".join(taken.left_out[:3]) + ", ..." * (len(taken.left_out) > 3)
        said.append(f"left out beside it: {len(taken.left_out)} arrays, {named}")
    return taken.weights, "; ".join(said)


def _as_they_are(found: Any, seen: Seen) -> dict[str, np.ndarray]:
    """The arrays by name where the usual keys lead."""
    if isinstance(found, list) and found and isinstance(found[0], Mapping):
        found = found[-1] if len(found) == 5 else found[0]
    while isinstance(found, Mapping):
        inner = [found[key] for key in ("state_dict", "ema", *USUAL) if isinstance(found.get(key), Mapping)]
        if not inner:
            break
        found = inner[0]
    if not isinstance(found, Mapping):
        raise ValueError(f"no arrays by name in it, but {type(found).__name__}")
    arrays = _arrays(found)
    if not arrays and seen.lists:
        path, listed = seen.lists[0]
        raise ValueError(f"{len(listed)} arrays without names in {'.'.join(path)}, and no weights with names beside it")
    if not arrays:
        raise ValueError(f"not arrays by name: {', '.join(map(str, list(found)[:3])) or 'nothing in it'}")
    return unwrapped(arrays)


# ----------------------------------------------------------------------------------------------------------- looking


def _arrays(found: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Of numbers, by name."""
    named = {name: item for name, item in found.items() if isinstance(name, str) and isinstance(item, np.ndarray)}
    return {name: array for name, array in named.items() if array.dtype.kind in "biufc"}


def _look_into(value: Any, path: tuple[str, ...], seen: Seen) -> None:
    """Add what there is in a mapping or list, and in those in it."""
    if not isinstance(value, Mapping | list) or len(path) > DEPTH or id(value) in seen.containers:
        return
    seen.containers.add(id(value))
    before = seen.size
    if isinstance(value, Mapping):
        arrays = _arrays(value)
        seen.networks += _networks(arrays, path, seen)
        items = {str(key): item for key, item in value.items() if not OPTIMIZER.match(str(key))}
    else:
        arrays = {str(i): item for i, item in enumerate(value) if isinstance(item, np.ndarray)}
        if is_average(path) and len(arrays) == len(value) and any(array.ndim for array in arrays.values()):
            seen.lists.append((path, list(arrays.values())))
        # ermongroup/ddim's: [model, optimizer, epoch, step], with a moving average at the end.
        last = {4: "ema"} if not path and len(value) == 5 else {}
        items = {last.get(i, f"[{i}]"): item for i, item in enumerate(value[:MOST])}
    for key, item in items.items():
        _look_into(item, (*path, key), seen)
    if seen.size == before and is_average(path) and any(array.ndim for array in arrays.values()):
        seen.others.append(path)


def _networks(arrays: Weights, path: tuple[str, ...], seen: Seen) -> list[Network]:
    """Those among arrays by name, each behind its first parts of names."""
    arrays = unwrapped(arrays)
    prefixes = sorted(set(_prefixes(arrays, seen.signatures)), key=len, reverse=True)
    if len(prefixes) > MOST:
        raise ValueError(f"{len(prefixes)} networks in one mapping, and {MOST} at most are looked at")
    rest, found = dict(arrays), []
    for prefix in prefixes:  # the longest first: a shorter one may stand before the same names
        own = {name: array for name, array in rest.items() if name.startswith(prefix)}
        rest = {name: array for name, array in rest.items() if name not in own}
        found.append(Network((*path, *prefix.split(".")[:-1]), _named(own, prefix)))
    for prefix, network in zip(prefixes, list(found), strict=True):
        if not network.is_latent:  # which knows its own
            for group, average in _without_dots(network, prefix, rest):
                found.append(Network((*path, *group.split(".")), average))
                rest = {name: array for name, array in rest.items() if not name.startswith(f"{group}.")}
    if found:
        seen.others += [(*path, name) for name in rest if is_average(name.split(".")[:-1]) and rest[name].ndim][:1]
    left_out = tuple(name for name in rest if rest[name].ndim)
    return [replace(network, left_out=left_out) for network in found]


def _prefixes(arrays: Weights, signatures: Sequence[str]) -> Iterator[str]:
    """What stands before the names of a network; of latent-diffusion's, before "model.diffusion_model."."""
    for name in arrays:
        for signature in signatures:
            if f".{name}".endswith(f".{signature}"):
                prefix = name.removesuffix(signature)
                if f".{prefix}".endswith(".diffusion_model."):
                    prefix = prefix.removesuffix("diffusion_model.")
                    prefix = prefix.removesuffix("model.") if f".{prefix}".endswith(".model.") else prefix
                yield prefix


def _named(arrays: Weights, prefix: str) -> dict[str, np.ndarray]:
    """Under the names of the network's project."""
    weights = {name.removeprefix(prefix): array for name, array in arrays.items()}
    if any(name.startswith("diffusion_model.") for name in weights):
        return {f"model.{name}": array for name, array in weights.items()}
    if any(name.startswith(UNET) for name in weights):
        return weights
    return {name: array for name, array in weights.items() if array.ndim}  # numbers alone are counters


def _without_dots(network: Network, prefix: str, rest: Weights) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(group, weights) of averages like latent-diffusion's, in the names of which the dots are missing.

    Raises:
      ValueError: one of some of the weights.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in rest.items():
        group, _, leaf = name.rpartition(".")
        if is_average(group.split(".")[-1:]) and leaf not in COUNTERS:
            groups.setdefault(group, {})[leaf] = array
    outer = prefix.split(".")[:-1]
    for group, arrays in groups.items():
        for start in range(len(outer) + 1):
            flat = {name: "".join(outer[start:]) + name.replace(".", "") for name in network.weights}
            average = {name: arrays[short] for name, short in flat.items() if short in arrays}
            missing = [name for name in flat if name not in average and name not in CONSTANTS]
            if average and missing:
                raise ValueError(f"{group} has averages of {len(average)} of the {len(flat)} arrays of the network")
            if average:
                yield group, average
                break


# ---------------------------------------------------------------------------------------------------------- averages


def _completed(average: Network, plain: Sequence[Network]) -> Network:
    """The average with what it has no average of: constants, and what latent-diffusion has beside its U-Net."""
    weights, latent = average.weights, [network for network in plain if network.is_latent]
    if latent and INPUT in weights:
        weights = {UNET + name: array for name, array in weights.items()}
    for network in latent if any(name.startswith(UNET) for name in weights) else plain:
        missing = [name for name in network.weights if name not in weights]
        if network.is_latent:
            missing = [name for name in missing if not name.startswith((UNET, EMA))]
        else:
            missing = [name for name in missing if name in CONSTANTS]
        weights = {**{name: network.weights[name] for name in missing}, **weights}
    return replace(average, weights=weights)


def _matched(path: tuple[str, ...], arrays: list[np.ndarray], plain: Sequence[Network]) -> Network:
    """An average whose arrays come in the order of the network's parameters: all of them, or those that are trained.

    Raises:
      ValueError: they do not fit.
    """
    for network in plain:
        every = network.of_unet
        for names in (every, [name for name in every if name not in CONSTANTS]):
            if [network.weights[name].shape for name in names] == [array.shape for array in arrays]:
                average = Network(path, dict(zip(names, arrays, strict=True)), network.left_out)
                return _completed(average, plain)
    sizes = ", ".join(f"{network} has {len(network.of_unet)}" for network in plain)
    raise ValueError(
        f"an average without names, {'.'.join(path)}: its {len(arrays)} arrays do not fit those of the network in "
        f"their order ({sizes}); save the weights that you mean by themselves"
    )
