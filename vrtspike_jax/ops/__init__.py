"""Differentiable operations that the models share, each with a plain reference."""

from vrtspike_jax.ops.convolution import conv, conv_relu, join
from vrtspike_jax.ops.deform_conv import (
    deform_conv2d,
    flow_guided_deform_conv,
    quad_size,
    raw_channels,
)
from vrtspike_jax.ops.flow_warp import flow_warp
from vrtspike_jax.ops.gated_mlp import gated_mlp
from vrtspike_jax.ops.gelu_gate import gelu_gate
from vrtspike_jax.ops.layer_norm import layer_norm
from vrtspike_jax.ops.normed_projection import normed_projection
from vrtspike_jax.ops.resize import resize_align_corners, resize_bilinear
from vrtspike_jax.ops.temporal_attention import temporal_attention
from vrtspike_jax.ops.window_attention import shifted_window_attention, window_attention

__all__ = [
    "conv",
    "conv_relu",
    "deform_conv2d",
    "flow_guided_deform_conv",
    "flow_warp",
    "gated_mlp",
    "gelu_gate",
    "join",
    "layer_norm",
    "normed_projection",
    "quad_size",
    "raw_channels",
    "resize_align_corners",
    "resize_bilinear",
    "shifted_window_attention",
    "temporal_attention",
    "window_attention",
]
