"""Images by name, and the batches of a run as a pure function of (seed, step)."""

from ddpm_jax.data.batches import batch, batch_indices, prefetch
from ddpm_jax.data.images import MEMORY_BOUND
from ddpm_jax.data.source import Source, image_shape, load, splits

__all__ = ["MEMORY_BOUND", "Source", "batch", "batch_indices", "image_shape", "load", "prefetch", "splits"]
