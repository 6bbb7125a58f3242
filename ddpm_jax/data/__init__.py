"""Data sets by name, and the batches of a run as a pure function of (seed, step)."""

from ddpm_jax.data.batches import batch, batch_indices, prefetch
from ddpm_jax.data.fingerprints import fingerprint
from ddpm_jax.data.records import MEMORY_BOUND, Feature, Record, Source, describe
from ddpm_jax.data.source import image_shape, load, splits

__all__ = [
    "MEMORY_BOUND", "Feature", "Record", "Source", "batch", "batch_indices", "describe", "fingerprint", "image_shape",
    "load", "prefetch", "splits",
]  # fmt: skip
