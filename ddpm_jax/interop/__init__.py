"""Weights of other projects, both ways. Name maps and array layouts only; PyTorch is never imported."""
