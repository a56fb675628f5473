"""Spikes of one exposure, moved to where their light is at its middle."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv, gelu
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
    the middle is s * velocity + s**2 * acceleration away. It goes on before and after the exposure,
    where the nearest bins of the frames next to it are warped as well: the shutter is taken to be
    open all the time. At a clip's ends the exposure's own bins stand in, each once more.

    Attributes:
        reach: Bins of the frame before and of the one after that are warped as well, up to K.
        channels: Of the estimate at scales 1/2, 1/4 and 1/8.
        blocks: Residual blocks at 1/8, and half as many, rounded up, at 1/4.
        dtype: Compute dtype; positions are float32.
    """

    reach: int = 0
    channels: Sequence[int] = (32, 48, 64)
    blocks: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, voxels: Float[Array, "b t h w k"]) -> Float[Array, "b t h w n"]:
        """Returns N = K + 2 * `reach` bins, each warped; from outside the picture comes its border.

        Raises:
            ValueError: for a reach that K bins do not have.
        """
        b, bins = voxels.shape[0], voxels.shape[-1]
        if not 0 <= self.reach <= bins:
            raise ValueError(f"SpikeAlignment: reach is {self.reach}, want 0 to {bins}, the bins")
        times = (jnp.arange(bins) + 0.5) / bins - 0.5
        times = jnp.broadcast_to(times, (1, voxels.shape[1], 1, 1, bins))
        x, times = (
            rearrange(self._extended(y, step), "b t h w k -> (b t) h w k")
            for y, step in ((voxels, 0.0), (jnp.repeat(times, b, axis=0), 1.0))
        )
        motion = self._motion(x)[:, None]
        times = rearrange(times, "n h w k -> n k h w 1")
        flow = times * motion[..., 0, :] + times**2 * motion[..., 1, :]
        # Spikes are given: without a gradient of their own, warping needs no scatter.
        each = rearrange(jax.lax.stop_gradient(x), "n h w k -> (n k) h w 1")
        warped = flow_warp(each, rearrange(flow, "n k h w x -> (n k) h w x"), padding="border")
        return rearrange(warped, "(b t k) h w 1 -> b t h w k", b=b, k=x.shape[-1])

    def _extended(self, x: Float[Array, "b t h w k"], step: float) -> Float[Array, "b t h w n"]:
        """`reach` bins of the frame before, the frame's own, and as many of the one after.

        What is taken from a neighbour changes by `step` on the way.
        """
        first, last = x[..., : self.reach], x[..., x.shape[-1] - self.reach :]
        before = jnp.concatenate([first[:, :1, ..., ::-1], last[:, :-1] - step], axis=1)
        after = jnp.concatenate([first[:, 1:] + step, last[:, -1:, ..., ::-1]], axis=1)
        return jnp.concatenate([before, x, after], axis=-1)

    def _motion(self, x: Float[Array, "n h w k"]) -> Float[Array, "n h w 2 2"]:
        """Velocity and acceleration (x, y) of each pixel, in pixels an exposure."""
        (h, w), features = x.shape[1:3], []
        for i, channels in enumerate(self.channels):
            enter = Conv(channels, (3, 3), strides=2, padding=1, dtype=self.dtype, name=f"down{i}")
            x = gelu(enter(x))
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
