"""Differentiable operations that the models share, each with a plain reference."""

from vrtspike_jax.ops.deform_conv import deform_conv2d
from vrtspike_jax.ops.flow_warp import flow_warp
from vrtspike_jax.ops.gated_mlp import gated_mlp
from vrtspike_jax.ops.resize import resize_align_corners, resize_bilinear
from vrtspike_jax.ops.window_attention import window_attention

__all__ = [
    "deform_conv2d",
    "flow_warp",
    "gated_mlp",
    "resize_align_corners",
    "resize_bilinear",
    "window_attention",
]
