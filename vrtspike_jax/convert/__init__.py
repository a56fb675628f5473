"""Weights to and from the published PyTorch models."""

from vrtspike_jax.convert.weights import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
