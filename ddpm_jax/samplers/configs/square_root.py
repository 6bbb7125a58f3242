"""float32's square root as PyTorch has it on AMD processors: up to 0.75 of a last place from the exact one.

There MKL goes by the instruction rsqrtps, whose 12 bits are two tables, and improves them without fused operations;
one root in six differs from the nearest by a last place. Elsewhere PyTorch's roots are (nearly) always the nearest.
diffusers' exponential and beta sigmas make this a whole timestep: the logarithm of the first sigma, exact, is cut
against that of the table, rounded, and the network is told T - 1 or T - 2. This module's bits are the same everywhere.

Source: all floats of [1, 4), torch 2.13.0 with MKL 2024.2 on an AMD EPYC of 2022 (Zen 4).
"""

import numpy as np

# y = NEAREST[i, j] - DOWN[i, j] + 1 - SLOPE[i, k], in units of 2^-13, for the 4 bits i, j, k after the leading one of x
# in [1, 2), and of x / 2 after that. NEAREST is that to 1 / sqrt(x) at the lower end of (i, j).
DOWN = (
    "222122212221122112122111111121111122111112111111112221111211111122122211111122112111112111111111"
    "111221121211121121122222222221111111111111111111211111111111111112112111111121121110111111000000"
    "222111221121121111111111111111112111111111111111111221111211121121122111111111112112222221112111"
    "121122111111111121121112111112111111111122112111111111111111111111111112111211211111111111111111"
    "221111111111122111211121111212121111111111111111111111100000011121111221112112112111121212121211"
    "11211111211111112111111111111111"
)
SLOPE = (
    "01234567789abcde01233456789aabcd012234566789abbc0122344567789aab001223455677899a011233455667889a"
    "001223344566788900112234455667880112233445566778001122334455667700112233344556670112223344556667"
    "0011122333445566001122233444555600111223334455560001112233344455011233455677899a0012233455677899"
    "001223344566778800122334455667780011223344556677011122334455666700112223344555660011222334445566"
    "000112223334455500111222333444550011122233344455011122233344445500011122223334440001112222333444"
    "00111122223333440011112222333344"
)


def _digits(text: str) -> np.ndarray:
    return np.array([int(digit, 16) for digit in text]).reshape(2, 16, 16)


def _reciprocal_roots() -> np.ndarray:
    """y [2 * 4096] of x in [1, 4): constant over 2^-12 and then 2^-11 of x."""
    ends = (1 + np.arange(256) / 256).reshape(1, 16, 16) * np.array([1, 2]).reshape(2, 1, 1)
    nearest = np.round(2**13 / np.sqrt(ends))
    units = (nearest - _digits(DOWN) + 1)[..., None] - _digits(SLOPE)[:, :, None]
    return (units / 2**13).astype(np.float32).ravel()


RECIPROCAL_ROOTS = _reciprocal_roots()


def square_root(x: np.ndarray | np.floating) -> np.ndarray:
    """The square root of float32 numbers; float32 of the same shape."""
    x = np.asarray(x, np.float32)
    usual = (x >= np.finfo(np.float32).tiny) & (x < np.inf)  # MKL takes all others by another path
    fraction, exponent = np.frexp(np.where(usual, x, np.float32(1)))
    odd = exponent % 2 == 0  # fraction is in [1/2, 1): of an even exponent, four times it is in [2, 4)
    scaled = np.where(odd, 4 * fraction, 2 * fraction)  # in [1, 4)
    place = (scaled.view(np.int32) - 0x3F800000) >> 11
    y = RECIPROCAL_ROOTS[place]
    half = np.float32(0.5)
    root, slope = scaled * y, half * y
    error = half - root * slope
    root, slope = root * error + root, error * slope + slope
    root = (scaled - root * root) * slope + root
    with np.errstate(invalid="ignore"):
        return np.where(usual, np.ldexp(root, (exponent - np.where(odd, 2, 1)) // 2), np.sqrt(x))
