"""Spikes of one exposure, moved to where their light is at its middle."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv
from vrtspike_jax.models.residual import ResidualBlock
from vrtspike_jax.ops import flow_warp, resize_bilinear

# Pixels that an output of 1 of the motion estimate stands for, so that it learns long ways early.
PIXELS = 8.0


class SpikeAlignment(nn.Module):
    """Estimates the motion during each exposure from its spikes, and warps each time bin along it.

    A moving edge leaves its light in another place in every bin, and a few steps of one bit say
    little about a pixel. Warped to the middle of the exposure, all bins show the same picture and
    can be averaged. Not in the published model; nothing but the restoration's loss teaches it.

    The motion of a pixel is a parabola: at time s from -1/2 to 1/2 of the exposure, the light of
    the middle is s * velocity + s**2 * acceleration away.

    Attributes:
        channels: Of the estimate at scales 1/2, 1/4 and 1/8.
        blocks: Residual blocks at 1/8, and half as many, rounded up, at 1/4.
        dtype: Compute dtype; positions are float32.
    """

    channels: Sequence[int] = (32, 48, 64)
    blocks: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, voxels: Float[Array, "b t h w k"]) -> Float[Array, "b t h w k"]:
        """Returns the voxels, each bin warped; from outside the picture comes its border."""
        b, bins = voxels.shape[0], voxels.shape[-1]
        x = rearrange(voxels, "b t h w k -> (b t) h w k")
        motion = self._motion(x)
        times = ((jnp.arange(bins) + 0.5) / bins - 0.5)[:, None, None, None]
        velocity, acceleration = (motion[:, None, ..., i, :] for i in range(2))
        flow = times * velocity + times**2 * acceleration
        # Spikes are given: without a gradient of their own, warping needs no scatter.
        each = rearrange(jax.lax.stop_gradient(x), "n h w k -> (n k) h w 1")
        warped = flow_warp(each, rearrange(flow, "n k h w x -> (n k) h w x"), padding="border")
        return rearrange(warped, "(b t k) h w 1 -> b t h w k", b=b, k=bins)

    def _motion(self, x: Float[Array, "n h w k"]) -> Float[Array, "n h w 2 2"]:
        """Velocity and acceleration (x, y) of each pixel, in pixels an exposure."""
        (h, w), features = x.shape[1:3], []
        for i, channels in enumerate(self.channels):
            enter = Conv(channels, (3, 3), strides=2, padding=1, dtype=self.dtype, name=f"down{i}")
            x = nn.gelu(enter(x))
            features.append(x)
        for i in range(self.blocks):
            x = ResidualBlock(self.channels[-1], self.dtype, name=f"coarse{i}")(x)
        fine = features[-2]
        x = Conv(self.channels[-2], (1, 1), dtype=self.dtype, name="up")(x)
        x = fine + resize_bilinear(x, *fine.shape[1:3])
        for i in range(-(-self.blocks // 2)):
            x = ResidualBlock(self.channels[-2], self.dtype, name=f"fine{i}")(x)
        # Zeros: it starts from no motion.
        head = Conv(4, (3, 3), dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="head")
        motion = resize_bilinear(PIXELS * head(x.astype(jnp.float32)), h, w)
        return rearrange(motion, "n h w (p x) -> n h w p x", p=2)
