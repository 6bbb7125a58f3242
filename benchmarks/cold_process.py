"""One process of `cold`: python -m benchmarks.cold_process FORM FOLDER.

JAX is imported only for ours, PyTorch only for theirs; of this package PyTorch's process sees the network's definition.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def ours(request: dict[str, Any], folder: Path, *, cached: bool) -> None:
    """Weights from the file, the scan compiled and run once."""
    import jax

    if cached:
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    else:
        jax.config.update("jax_enable_compilation_cache", False)
    from flax import traverse_util

    from ddpm_jax import keys, samplers
    from ddpm_jax.models import bind
    from ddpm_jax.tools.bench.networks import NETWORKS
    from ddpm_jax.tools.bench.sampling import ddim

    with np.load(folder / "ours.npz") as file:
        params = traverse_util.unflatten_dict({name: file[name] for name in file.files}, sep="/")
    table, make_denoise = ddim(request["num_steps"])
    model, shape = (
        NETWORKS[request["network"]].model.clone(dtype=jax.numpy.dtype(request["dtype"])),
        tuple(request["shape"]),
    )

    @jax.jit
    def draw(params: Any, key: jax.Array) -> jax.Array:
        return samplers.sample(make_denoise(bind(model, params)), table, key, shape)

    np.asarray(draw(params, keys.make(0)))


def theirs(request: dict[str, Any], folder: Path, *, compiled: bool) -> None:
    """Weights from the file, the loop run once."""
    torch = importlib.import_module("torch")
    from ddpm_jax.tools.bench import torch_forms, torch_unet

    with np.load(folder / "theirs.npz") as file:
        weights = {name: file[name] for name in file.files}
    network = torch_forms.weights_into(torch, torch_unet.unet(torch, request["config"]), weights)
    network = network.eval().to(request["device"], getattr(torch, request["dtype"]))
    network = torch.compile(network) if compiled else network
    batch, height, width, channels = request["shape"]
    x_T = torch.randn(batch, channels, height, width, device=request["device"])
    torch_forms.sample(torch, network, request["rows"], x_T).cpu().numpy()


def main(form: str, folder: str) -> None:
    """Make images, then say so."""
    request = json.loads((Path(folder) / "request.json").read_text())
    if form.startswith("jax"):
        ours(request, Path(folder), cached=form == "jax cached")
    else:
        kept = Path(folder) / "inductor"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept) if "cached" in form else tempfile.mkdtemp(dir=folder)
        os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "1" if "cached" in form else "0"
        theirs(request, Path(folder), compiled="compile" in form)
    sys.stdout.write("images\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
