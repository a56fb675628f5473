"""Spike-guided video deblurring: VRT with a spike-camera branch, in JAX and Flax.

Conventions, everywhere in this package:

- Axes are channels last. Frames are (B, T, H, W, C): batch, time, height, width, channel. Spike
  voxel grids are (B, T, H, W, K) with K time bins in each exposure; raw spikes are (S, H, W), S
  steps of 0 or 1.
- Images are float32 in [0, 1] inside models and metrics, uint8 in [0, 255] in files and batches.
- Optical flow is (x, y) in pixels of its own scale; offsets of deformable convolution are (dy, dx).
- Parameters, flow, warping coordinates and softmax are float32; the compute dtype is a field.
"""

__version__ = "0.1.0"

__all__ = ["load", "restore"]


def __getattr__(name: str):
    # Loading JAX takes a second, which `vrtspike --help` need not.
    if name in __all__:
        from vrtspike_jax.restoration import restorer

        return getattr(restorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
