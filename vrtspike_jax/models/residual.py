"""Residual convolutions of frames one by one, for where attention costs too much."""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv, LayerNorm, gelu


class ResidualBlock(nn.Module):
    """x + conv2(gelu(conv1(norm(x)))) with 3x3 convolutions.

    Attributes:
        channels: Channels.
        dtype: Compute dtype.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        y = LayerNorm(dtype=self.dtype, name="norm")(x)
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
