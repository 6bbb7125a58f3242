"""What to change in a run that a slice cannot hold.

Bytes of a chip = state + a n, with n images on it. a is taken from the program that did not fit, so these are
estimates: ask for a plan of what they say.
"""

import math


def to_fit(
    *,
    needed_bytes: int,
    available_bytes: int,
    state_bytes: int,
    num_images: int,
    num_chips: int,
    batch: str,
    remat_left: bool,
    fsdp: int | None,
) -> tuple[str, ...]:
    """n <= (available - state) / a, with a = (needed - state) / n.

    Args:
      needed_bytes: on one chip, the state included.
      available_bytes: on one chip.
      state_bytes: parameters, their average and the optimizer, on one chip.
      num_images: of a step, all chips together.
      num_chips: that share them.
      batch: the setting that num_images comes from.
      remat_left: whether rematerialization is still to be had.
      fsdp: chips that the state is divided over now; None where it cannot be.
    """
    if state_bytes >= available_bytes:
        return ("a smaller model" if fsdp is None else _sharded(fsdp, state_bytes, available_bytes, num_chips),)
    each = num_images / num_chips
    most = int((available_bytes - state_bytes) / ((needed_bytes - state_bytes) / each))
    found = []
    if most >= 1:
        found.append(f"{batch} of at most about {most * num_chips}, {most} images on a chip")
        if num_chips > 1:
            found.append(f"about {math.ceil(num_images / most)} chips or more for {num_images} images")
    if remat_left:
        found.append("--model.remat: blocks are computed again in the backward pass, not kept")
    if fsdp is not None and state_bytes >= available_bytes / 2:
        found.append(_sharded(fsdp, state_bytes, available_bytes, num_chips))
    if most < 1 and not found:
        found.append("a smaller model or smaller images: one image does not fit")
    return tuple(found)


def _sharded(fsdp: int, state_bytes: int, available_bytes: int, num_chips: int) -> str:
    """The mesh with the shortest axis fsdp on which the state takes at most half of a chip; activations need some."""
    least = 2 * fsdp * state_bytes / available_bytes
    for parts in range(fsdp + 1, num_chips + 1):
        if num_chips % parts == 0 and parts >= least:
            return f"--parallel.mesh data {num_chips // parts} fsdp {parts}: a chip holds 1/{parts} of the state"
    parts = math.ceil(least)
    return f"{parts} chips or more and --parallel.mesh fsdp {parts}: a chip holds 1/{parts} of the state"


def multiples(batch_size: int, num_chips: int) -> str:
    """The batches next to one that the chips cannot share."""
    below, above = batch_size // num_chips * num_chips, -(-batch_size // num_chips) * num_chips
    return f"train.batch_size {above}" if below == 0 else f"train.batch_size {below} or {above}"
