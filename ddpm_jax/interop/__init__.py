"""Weights of other projects, both ways. Name maps and array layouts; PyTorch is imported only to read its own files."""

from .loaded import FirstStage as FirstStage
from .loaded import Loaded as Loaded
from .loading import load as load
from .save import save_diffusers as save_diffusers
