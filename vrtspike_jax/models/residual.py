"""Residual convolutions of frames one by one, for where attention costs too much."""

import math

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv, LayerNorm, gelu


def shift_frames(x: Float[Array, "n h w c"], clip: int) -> Float[Array, "n h w c"]:
    """An eighth of each frame's channels from the frame after it, another from the one before.

    Args:
        x: Features of frames, those of a clip one after another.
        clip: Frames of a clip, which divide n; zeros come from beyond its ends.

    Source: temporal shift module (Lin et al., ICCV 2019), with zero padding.
    """
    frames = rearrange(x, "(b t) h w c -> b t h w c", t=clip)
    eighth = x.shape[-1] // 8
    after, before, own = jnp.split(frames, (eighth, 2 * eighth), axis=-1)
    beyond = jnp.zeros_like(after[:, :1])
    after = jnp.concatenate([after[:, 1:], beyond], axis=1)
    before = jnp.concatenate([beyond, before[:, :-1]], axis=1)
    return jnp.concatenate([after, before, own], axis=-1).reshape(x.shape)


class ResidualBlock(nn.Module):
    """x + conv2(gelu(conv1(norm(x)))) with 3x3 convolutions.

    Attributes:
        channels: Channels.
        dtype: Compute dtype.
        clip: Frames of a clip, if the first convolution is to see those beside each frame
            (`shift_frames`); 0 for frames on their own.
        gated: Whether values times gelu(gates) stand for the gelu; both are of two thirds of the
            channels, so that there are about as many parameters.

    Source: GEGLU (Shazeer, arXiv:2002.05202), with convolutions.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32
    clip: int = 0
    gated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        y = LayerNorm(dtype=self.dtype, name="norm")(x)
        if self.clip:
            y = shift_frames(y, self.clip)
        if self.gated:
            # Two thirds, in multiples of 8, which matrix units want.
            width = 8 * math.ceil(self.channels / 12)
            y = Conv(2 * width, (3, 3), dtype=self.dtype, name="conv1")(y)
            values, gates = jnp.split(y, 2, axis=-1)
            y = values * gelu(gates)
        else:
            y = gelu(Conv(self.channels, (3, 3), dtype=self.dtype, name="conv1")(y))
        return x + Conv(self.channels, (3, 3), dtype=self.dtype, name="conv2")(y)


class ResidualGroup(nn.Module):
    """`ResidualBlock`s on every frame of a clip.

    Attributes:
        channels: Channels.
        depth: Blocks.
        remat: Whether the backward pass computes each block again.
        dtype: Compute dtype.
    """

    channels: int
    depth: int
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        b = x.shape[0]
        x = rearrange(x, "b t h w c -> (b t) h w c")
        for i in range(self.depth):
            x = block(self.channels, self.dtype, name=f"blocks_{i}")(x)
        return rearrange(x, "(b t) h w c -> b t h w c", b=b)
