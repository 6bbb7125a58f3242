"""Weights of other projects, both ways. Name maps and array layouts; PyTorch is imported only to read its own files."""

from ddpm_jax.interop.diffusers.save import save_diffusers as save_diffusers
from ddpm_jax.interop.loading import load as load
from ddpm_jax.interop.loading import load_classifier as load_classifier
from ddpm_jax.interop.loading import load_first_stage as load_first_stage
from ddpm_jax.trained import FirstStage as FirstStage
from ddpm_jax.trained import Trained as Loaded

__all__ = ["FirstStage", "Loaded", "load", "load_classifier", "load_first_stage", "save_diffusers"]
