"""What a method of guidance is, and the denoiser that it makes of several answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.answers import Answers
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.denoise import Denoise, Denoised, Remembering
from ddpm_jax.samplers.table import Row, guidance_of

Numbers = Mapping[str, jax.Array]
MakeDenoise = Callable[[ModelFn], Denoise]
NOTHING, GIVEN, TOGETHER = range(3)
"""What a row asks, as its number ASKED says: what the network says when it is told nothing, the condition, or both."""
ASKED = "asked"
CLASSIFIER_SCALE = "classifier_scale"
"""Numbers of a row beside a method's: which answers it asks for, and the scale of a classifier."""


@dataclass(frozen=True)
class Method:
    """combine((c, u, ...), numbers) -> the guided output, of the network's outputs c told the condition and u told not.

    Attributes:
      combine: of arrays like x: a learned variance does not come here, it is c's. Numbers have a trailing 1 for each
        axis of an image, so that those of examples fit.
      defaults: its numbers by name, besides "scale", and what they are where nobody says. None must be given.
      given_at: the scale at which it returns c whatever u is; None if there is none.
      nothing_at: the scale at which it returns u whatever c is; None if there is none.
      limits: of numbers by name, (lowest, highest); the others are any.
      overruled_by: the name of a number that, in rows where it is not 0, makes of the answers something else than its
        scale says; they then ask for all of them, whatever scale and interval are. None if there is none.
      renoise: which answer's eps the sampler goes on with; None for that of the guided output.
      memory: from the shape and dtype of x to what it keeps from call to call; combine then takes and returns it, as
        combine(answers, numbers, memory) -> (output, memory). None if it keeps nothing.
    """

    combine: Callable[..., Any]
    defaults: Mapping[str, float | None] = field(default_factory=dict)
    given_at: float | None = 1.0
    nothing_at: float | None = 0.0
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    overruled_by: str | None = None
    renoise: int | None = None
    memory: Callable[[jax.ShapeDtypeStruct], Any] | None = None


def guided(answers: Answers, make_denoise: MakeDenoise, method: Method) -> Denoise | Remembering:
    """What samplers call: at every row the answers that it asks for, combined, read as one output of the network.

    Args:
      answers: from `asked` or `of_each`.
      make_denoise: from a model_fn to a denoiser, such as Trained.denoiser: clipping comes after guidance.
      method: how the answers are combined; its numbers come with the table, see `on`.

    Raises:
      ValueError: a table without the method's numbers. Raised while tracing.
    """

    def denoise(x: jax.Array, row: Row, memory: Any) -> tuple[Denoised, Any]:
        numbers = _numbers(row, method, x.ndim)

        def alone(k: int) -> Callable[[jax.Array], tuple[tuple[jax.Array, ...], Any]]:
            def branch(x: jax.Array) -> tuple[tuple[jax.Array, ...], Any]:
                output = answers.each[k](x, _time(x, row))
                return (output,) * (1 if method.renoise is None else 2), memory

            return branch

        def together(x: jax.Array) -> tuple[tuple[jax.Array, ...], Any]:
            found = answers.together(x, _time(x, row))
            output, kept = _combined(method, x, found, numbers, memory)
            return (output,) if method.renoise is None else (output, found[method.renoise]), kept

        # The last two answers of three, as with a negative prompt, are never asked alone.
        outputs, memory = jax.lax.switch(row.guidance[ASKED].astype(jnp.int32), (alone(1), alone(0), together), x)
        first, *rest = (make_denoise(lambda x, t, output=output: output)(x, row) for output in outputs)
        if rest:
            eps = rest[0].eps
            first = first._replace(eps=eps, rest=x - row.alpha * first.x_0 - row.sigma * eps)
        return first, memory

    if method.memory is None:
        return lambda x, row: denoise(x, row, None)[0]
    return Remembering(method.memory, denoise)


def _combined(
    method: Method, x: jax.Array, answers: tuple[jax.Array, ...], numbers: Numbers, memory: Any
) -> tuple[jax.Array, Any]:
    """The output, with the first answer's learned variance if there is one, and the new memory."""
    channels = x.shape[-1]
    images, variance = tuple(answer[..., :channels] for answer in answers), answers[0][..., channels:]
    found = method.combine(images, numbers) if method.memory is None else method.combine(images, numbers, memory)
    output, memory = (found, None) if method.memory is None else found
    return jnp.concatenate([output, variance], axis=-1) if variance.shape[-1] else output, memory


def _numbers(row: Row, method: Method, ndim: int) -> dict[str, jax.Array]:
    """Those of this row, [] or [B, 1, ..., 1].

    Raises:
      ValueError: none, or another method's.
    """
    expected, found = {"scale", *method.defaults}, set(guidance_of(row)) - {ASKED, CLASSIFIER_SCALE}
    if found != expected:
        got = ", ".join(sorted(found)) or "none"
        raise ValueError(
            f"the table must have this method's numbers {', '.join(sorted(expected))}, from guidance.on, got {got}"
        )
    axes = lambda value: value.reshape(*value.shape, *(1,) * (ndim - 1)) if value.ndim else value
    return {name: axes(jnp.asarray(row.guidance[name])) for name in found}


def _time(x: jax.Array, row: Row) -> jax.Array:
    return jnp.full(x.shape[:1], row.time, jnp.float32)
