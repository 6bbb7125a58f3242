"""Numbers in a file that a formula gives as well: where the file's are the formula's, rounded, the formula's are taken.

A checkpoint in half precision has its tables rounded like its weights: betas in bfloat16 are up to 4e-3 off.
"""

import jax.numpy as jnp
import numpy as np

# What rounding can change, relative to the number, from the coarsest precision on. What is in bfloat16 may have been
# in float16 before.
ROUNDED = ((jnp.bfloat16, 2**-8 + 2**-11), (np.float16, 2**-11))
# And by itself, where the number is too small for all bits of a float16: below 6e-5.
SMALL = 2**-25


def of_precision(array: np.ndarray) -> float:
    """Half of the last bit, relative: of the coarsest of bfloat16 and float16 that holds every number; 0 if none does.

    The numbers say in which precision they were stored, whatever their array's dtype became.
    """
    for dtype, change in ROUNDED:
        with np.errstate(over="ignore"):
            if np.array_equal(array.astype(dtype).astype(array.dtype), array, equal_nan=array.dtype.kind == "f"):
                return change
    return 0.0


def misfit(
    stored: np.ndarray, exact: np.ndarray | float, slack: np.ndarray | float, beside: np.ndarray | None = None
) -> float:
    """The largest |stored - exact| that is none of rounding; 0 where there is none.

    Args:
      stored: of a file.
      exact: of the formula, of the same shape.
      slack: how far the formula may be off by itself, in the float32 that both were computed in.
      beside: an array of the same file that says in which precision it is, where stored is too short to.
    """
    difference = np.abs(np.asarray(stored, np.float64) - exact)
    relative = of_precision(stored if beside is None else beside)
    allowed = slack + relative * np.abs(exact) + (SMALL if relative else 0)
    return float(np.max(np.where(difference <= allowed, 0.0, difference), initial=0.0))
