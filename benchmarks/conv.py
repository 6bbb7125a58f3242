"""Forms of a 3x3 convolution on a CPU: what each was worth, and how exact it is.

Run:       python -m benchmarks.conv [rounds]
Needs:     a CPU; about 5 minutes
Expect:    forward winograd_rows ahead of direct from 8 x 8 on, with its errors; the others behind one of the two
           somewhere; of the kernel's gradient, and for few channels, nothing ahead of direct everywhere
Measured:  docs/cpu_speed.md
"""

import itertools
import platform
import statistics
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddpm_jax.models.convolution import direct, winograd
from ddpm_jax.tools.bench.interleave import interleaved

# Batch, height, inputs and outputs: the stages of the CIFAR-10 network at batch 8, and of the digits network at 16.
SIZES = [(8, 32, 128, 128), (8, 32, 384, 128), (8, 16, 256, 256), (8, 16, 512, 256), (8, 8, 256, 256), (8, 4, 256, 256),
         (16, 8, 16, 16), (16, 8, 48, 16), (16, 8, 32, 32), (16, 4, 32, 32)]  # fmt: skip

# Lavin and Gray 2015 (arXiv:1509.09308), section 4: F(2, 3) and F(4, 3) along one axis.
Taps = list[jax.Array]


def inputs_2(d: Taps) -> Taps:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def outputs_2(m: Taps) -> Taps:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def inputs_4(d: Taps) -> Taps:
    a, b = d[4] - 4 * d[2], d[3] - 4 * d[1]
    e, f = d[4] - d[2], 2 * (d[3] - d[1])
    return [4 * d[0] - 5 * d[2] + d[4], a + b, a - b, e + f, e - f, 4 * d[1] - 5 * d[3] + d[5]]


def outputs_4(m: Taps) -> Taps:
    s, d, p, q = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [m[0] + s + p, d + 2 * q, s + 4 * p, d + 8 * q + m[5]]


KERNEL_2 = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
KERNEL_4 = np.array(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32
) / np.array([[24]], np.float32)  # fmt: skip


def nine_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product for each place in the kernel."""
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(3) for j in range(3)]
    y = sum(padded[:, i : i + height, j : j + width].reshape(-1, channels) @ kernel[i, j] for i, j in places)
    assert isinstance(y, jax.Array)
    return y.reshape(batch, height, width, -1)


def im2col(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product with the nine shifted images side by side."""
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    y = jnp.concatenate(patches, axis=-1).reshape(-1, 9 * channels) @ kernel.reshape(9 * channels, -1)
    return y.reshape(batch, height, width, -1)


def winograd_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """F(2 x 2, 3 x 3): 16 products for each tile of 4 outputs instead of 36."""
    batch, height, width, channels = x.shape
    u = jnp.einsum("ai,ijco,bj->abco", KERNEL_2, kernel, KERNEL_2)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pairs = padded.reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2, channels)
    rows = inputs_2([pairs[:, i // 2 : i // 2 + height // 2, i % 2] for i in range(4)])
    tiles = [inputs_2([row[:, :, j // 2 : j // 2 + width // 2, j % 2] for j in range(4)]) for row in rows]
    m = [[tiles[a][b].reshape(-1, channels) @ u[a, b] for a in range(4)] for b in range(4)]
    columns = [outputs_2(column) for column in m]  # [b][row]
    y = [jnp.stack(outputs_2([columns[b][i] for b in range(4)]), axis=1) for i in range(2)]
    y = jnp.stack([row.reshape(batch, height // 2, width, -1) for row in y], axis=2)
    return y.reshape(batch, height, width, -1)


def winograd_rows_4(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """F(4, 3) along the height: 6 row convolutions for 4 rows instead of 12."""
    batch, height, width, channels = x.shape
    u = jnp.einsum("ai,ijco->ajco", KERNEL_4, kernel)
    fours = jnp.pad(x, ((0, 0), (1, 3), (0, 0), (0, 0))).reshape(batch, height // 4 + 1, 4, width, channels)
    d = inputs_4([fours[:, i // 4 : i // 4 + height // 4, i % 4] for i in range(6)])
    m = [
        lax.conv_general_dilated(
            rows.reshape(-1, width, channels), part, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        for rows, part in zip(d, u, strict=True)
    ]
    return jnp.stack(outputs_4(m), axis=1).reshape(batch, height, width, -1)


FORMS = {
    "direct": direct,
    "winograd_rows": winograd,
    "winograd_rows_4": winograd_rows_4,
    "winograd_tiles": winograd_tiles,
    "nine_products": nine_products,
    "im2col": im2col,
}


Form = Callable[..., jax.Array]
PASSES: dict[str, Callable[[Form], Form]] = {
    "forward": lambda form: lambda x, kernel, dy: form(x, kernel),
    "gradient of the kernel": lambda form: lambda x, kernel, dy: jax.vjp(lambda k: form(x, k), kernel)[1](dy)[0],
}


def main(rounds: str = "15") -> None:
    print(f"jax {jax.__version__}, {platform.machine()}, {jax.devices()[0].device_kind}; GFLOP/s of the direct form's")
    print(f"products, median of {rounds} rounds; largest error in units of the largest output")
    for (batch, height, inputs, outputs), (name, derive) in itertools.product(SIZES, PASSES.items()):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(batch, height, height, inputs)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(3, 3, inputs, outputs)) / (9 * inputs) ** 0.5, jnp.float32)
        dy = jnp.asarray(rng.normal(size=(batch, height, height, outputs)), jnp.float32)
        flops = 2 * batch * height**2 * 9 * inputs * outputs
        print(f"\n{batch} images of {height} x {height}, {inputs} -> {outputs}, {name}")
        measure({name: derive(form) for name, form in FORMS.items()}, (x, kernel, dy), flops, int(rounds))


def measure(forms: dict[str, Form], arguments: tuple[jax.Array, ...], flops: int, rounds: int) -> None:
    """One line for each form."""
    with jax.enable_x64(True):
        exact = np.asarray(forms["direct"](*(array.astype(jnp.float64) for array in arguments)))
    jobs = {name: jax.jit(form) for name, form in forms.items()}
    errors = {name: np.abs(job(*arguments) - exact).max() / np.abs(exact).max() for name, job in jobs.items()}
    seconds = interleaved(
        {name: lambda job=job: jax.block_until_ready(job(*arguments)) for name, job in jobs.items()}, rounds, pause=0
    )
    for name, values in seconds.items():
        print(
            f"  {name:16} {flops / statistics.median(values) / 1e9:5.0f} GFLOP/s   error {errors[name]:.1e}", flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
