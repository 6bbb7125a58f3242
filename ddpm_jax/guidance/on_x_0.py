"""Methods of what a network says about x_0, whatever it predicts."""

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.answers import Answers
from ddpm_jax.guidance.method import MakeDenoise, Method, guided
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.denoise import Denoise, Denoised, Remembering, remembering
from ddpm_jax.samplers.table import Row


def guided_on_x_0(answers: Answers, make_denoise: MakeDenoise, method: Method) -> Denoise | Remembering:
    """As `guided`, with c and u the x_0 that the network's answers stand for: where APG has them.

    A difference of eps is one of x_0, times -sigma / alpha: what is linear in the answers, as classifier-free guidance,
    is the same in both. Lengths, inner products and momentum are not.

    Args, raises: as `guided`. The denoisers may clip: each x_0 then comes clipped, what is made of them is not.
    """

    def denoise(x: jax.Array, row: Row, memory: Any) -> tuple[Denoised, Any]:
        def read(output: jax.Array) -> jax.Array:
            """[x_0, the scale of the noise if one is learned], as one answer."""
            found = make_denoise(lambda x, t: output)(x, row)
            learned = () if found.noise_scale is None else (found.noise_scale,)
            return jnp.concatenate([found.x_0, *learned], axis=-1)

        each = tuple(lambda x, t, ask=ask: read(ask(x, t)) for ask in answers.each)
        as_x_0 = Answers(each, lambda x, t: tuple(read(output) for output in answers.together(x, t)))
        return remembering(guided(as_x_0, _from_x_0, method)).denoise(x, row, memory)

    if method.memory is None:
        return lambda x, row: denoise(x, row, None)[0]
    return Remembering(method.memory, denoise)


def _from_x_0(model_fn: ModelFn) -> Denoise:
    def denoise(x: jax.Array, row: Row) -> Denoised:
        output, channels = model_fn(x, jnp.full(x.shape[:1], row.time, jnp.float32)), x.shape[-1]
        x_0, learned = output[..., :channels], output[..., channels:]
        return Denoised(x_0, (x - row.alpha * x_0) / row.sigma, learned if learned.shape[-1] else None)

    return denoise
