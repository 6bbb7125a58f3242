"""What a program multiplies: convolutions and matrix products, counted in its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def product_flops(f: Callable[..., Any], *args: Any) -> int:
    """2 * multiplications in every convolution and matrix product of f(*args).

    Not XLA's cost analysis, which adds elementwise work, differs between devices, leaves the padding out of
    convolutions, and counts the body of a loop once. Here a scan counts as often as it runs; a while loop, once.
    """
    return _of_jaxpr(jax.make_jaxpr(f)(*args))


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> int:
    name = equation.primitive.name
    if name == "cond":  # of forms for several platforms, the plain one has the most
        return max(_of_jaxpr(branch) for branch in equation.params["branches"])
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    inner = sum(_of_jaxpr(jaxpr) for jaxpr in jaxprs_in_params(equation.params))
    return equation.params["length"] * inner if name == "scan" else inner
