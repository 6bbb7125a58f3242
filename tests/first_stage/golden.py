"""The recorded first stages: whole networks with their discriminators, and what our modules make of the tensors."""

import json

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from ddpm_jax.models.discriminator import PatchDiscriminator


def recorded(shared_golden, name):
    """(arrays, meta, tensors) of first_stage/NAME; no tensors where there is no such file."""
    path = shared_golden / "first_stage" / name
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        meta = json.loads(str(file["meta"]))
    tensors = path.with_suffix(".safetensors")
    return arrays, meta, load_file(tensors) if tensors.exists() else {}


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, 1, -1) if array.ndim == 4 else array)


def under(tensors, prefix):
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def discriminator(num_layers, *, actnorm=False, channels=8):
    return PatchDiscriminator(channels, num_layers, "actnorm" if actnorm else "batch")


def discriminator_variables(tensors):
    """{"params", "batch_stats"} from the tensors main.N.*: conv, then conv, norm, ... with a leaky ReLU after each."""
    numbers = sorted({int(name.split(".")[1]) for name in tensors})
    params, stats = {}, {}
    layer = 0
    for number in numbers:
        own = under(tensors, f"main.{number}.")
        if own.get("weight", np.zeros(1)).ndim == 4:
            params[f"conv_{layer}"] = {"kernel": jnp.asarray(own["weight"].transpose(2, 3, 1, 0))}
            if "bias" in own:
                params[f"conv_{layer}"]["bias"] = jnp.asarray(own["bias"])
            layer += 1
        elif "loc" in own:
            params[f"norm_{layer - 1}"] = {name: jnp.asarray(own[name].ravel()) for name in ("loc", "scale")}
        else:
            params[f"norm_{layer - 1}"] = {"scale": jnp.asarray(own["weight"]), "bias": jnp.asarray(own["bias"])}
            stats[f"norm_{layer - 1}"] = {"mean": jnp.asarray(own["running_mean"])}
            stats[f"norm_{layer - 1}"]["variance"] = jnp.asarray(own["running_var"])
    return {"params": params, "batch_stats": stats} if stats else {"params": params}


def discriminator_arrays(tree):
    """{"main.N.weight": ...} in their layouts, from parameters or their gradient, or from batch_stats."""
    found = {}
    for layer in range(1 + max(int(name.split("_")[1]) for name in tree)):
        conv, norm = tree.get(f"conv_{layer}", {}), tree.get(f"norm_{layer}", {})
        number = 0 if layer == 0 else 3 * layer - 1
        names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
        if "kernel" in conv:
            found[f"main.{number}.weight"] = np.asarray(conv["kernel"]).transpose(3, 2, 0, 1)
        if "bias" in conv:
            found[f"main.{number}.bias"] = np.asarray(conv["bias"])
        if "loc" in norm:
            found |= {f"main.{number + 1}.{name}": np.asarray(norm[name])[None, :, None, None] for name in norm}
        else:
            found |= {f"main.{number + 1}.{names[name]}": np.asarray(norm[name]) for name in norm}
    return found
