"""One stored network of PyTorch against ours: output, loss, gradients, and the way of its weights there and back."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import relative


class Network(NamedTuple):
    """A network of PyTorch, and what ours makes of it."""

    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    weights: dict[str, np.ndarray]
    model: Any
    to_params: Callable[[Mapping[str, np.ndarray]], Any]
    to_state_dict: Callable[[Any], Mapping[str, np.ndarray]]

    @property
    def params(self) -> Any:
        return self.to_params(self.weights)


Family = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]
"""from_config, to_params, to_state_dict of an interop module."""


def network_of(
    family: Family, config: Mapping[str, Any], weights: dict[str, np.ndarray], arrays: Any, meta: Any
) -> Network:
    """Of a config and weights, with the arrays and meta of a golden file where there are some."""
    from_config, to_params, to_state_dict = family
    ways = partial(to_params, config=config), partial(to_state_dict, config=config)
    return Network(arrays, meta, weights, from_config(config), *ways)


def stored(folder: Path, name: str, family: Family, **changes: Any) -> Network:
    """networks/<name>; changes are to settings of its config."""
    arrays, meta, weights = load(folder, name)
    return network_of(family, meta["config"] | changes, weights, arrays, meta)


def load(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]:
    """(arrays, meta, weights) of networks/<name>."""
    path = folder / "networks" / name
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        meta = json.loads(str(file["meta"]))
    return arrays, meta, load_file(path.with_suffix(".safetensors"))


def nhwc(array):
    """Images with channels last; anything else as it is."""
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def check(
    output_of: Callable[..., jax.Array],
    network: Network,
    *,
    output: str,
    inputs: tuple[str, ...] = ("x",),
    no_gradient: str = "$^",
    constants: tuple[str, ...] = (),
) -> None:
    """output_of(params, *inputs) against the stored one: to 1e-4 of the largest entry; gradients to 1e-4 too.

    Args:
      output: the stored output behind the stored loss.
      inputs: the float inputs; their gradients are compared.
      no_gradient: pattern of parameters of which the gradient is exactly zero, so that both implementations return
        the rounding noise of a sum that cancels.
      constants: stored gradients of arrays which are no parameters here.
    """
    arrays, params = network.arrays, network.params
    values = tuple(nhwc(arrays[f"in.{name}"]) for name in inputs)

    def loss(params, values):
        found = output_of(params, *values)
        return jnp.mean(found * nhwc(arrays["cotangent"])), found

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, found), (grad_params, grad_values) = gradient(params, values)
    assert relative(found, nhwc(arrays[f"out.{output}"])) < 1e-4
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-4)
    for name, grad in zip(inputs, grad_values, strict=True):
        assert relative(grad, nhwc(arrays[f"grad.in.{name}"])) < 1e-4, name

    grads = network.to_state_dict(grad_params)
    norms = dict(zip(network.meta["param_names"], arrays["grad_norms"], strict=True))
    # What is a constant here has no gradient here, and is no part of ours.
    total = np.sqrt(arrays["grad_global_norm"] ** 2 - sum(norms.pop(name) ** 2 for name in constants))
    found_total = np.sqrt(sum(np.sum(grads[name].astype(np.float64) ** 2) for name in norms))
    np.testing.assert_allclose(found_total, total, rtol=1e-4)
    zero = re.compile(no_gradient)
    for name, expected in norms.items():
        actual = np.linalg.norm(grads[name].astype(np.float64))
        if expected == -1:  # PyTorch found no way from the parameter to the loss
            assert actual == 0, name
        elif zero.search(name):
            assert max(actual, expected) < 1e-6 * total, name
        else:
            np.testing.assert_allclose(actual, expected, rtol=1e-4, err_msg=name)
    for key in arrays:
        if key.startswith("grad.param."):
            name = key.removeprefix("grad.param.")
            assert zero.search(name) or relative(grads[name], arrays[key]) < 1e-4, name


def check_there_and_back(network: Network) -> None:
    """torch to JAX to torch: the same names, dtypes and bits."""
    back = network.to_state_dict(network.params)
    assert back.keys() == network.weights.keys()
    for name, array in network.weights.items():
        assert back[name].dtype == array.dtype, name
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def check_every_misfit_is_listed(network: Network, *, removed: str, cut: str, layer: str) -> None:
    """Errors name the array removed, the one cut short, one too many; and backwards our layer that is removed."""
    changed = {name: array for name, array in network.weights.items() if name != removed}
    changed[cut] = changed[cut][:-1]
    changed["another.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="fit") as error:
        network.to_params(changed)
    size = len(network.weights[cut]) - 1
    for part in (f"missing {removed}", "left over another.weight", f"{cut} is [{size}"):
        assert part in str(error.value), (part, str(error.value))

    params = dict(network.params)
    del params[layer]
    with pytest.raises(ValueError, match=f"fit.*missing {layer}/"):
        network.to_state_dict(params)
