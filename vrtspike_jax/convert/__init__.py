"""Weights to and from the published PyTorch models, and the files that hold them."""

from vrtspike_jax.convert.files import read_state_dict, write_state_dict
from vrtspike_jax.convert.weights import from_torch, to_torch

__all__ = ["Conversion", "convert", "from_torch", "read_state_dict", "to_torch", "write_state_dict"]


def __getattr__(name: str):
    # The converter writes checkpoints, and training, which defines them, needs this package.
    if name in ("Conversion", "convert"):
        from vrtspike_jax.convert import converter

        return getattr(converter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
