"""The spike branch: 3D encoder, attention over time, and fusion with the frames' features."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv, Dense, LayerNorm, gelu
from vrtspike_jax.ops import resize_bilinear, temporal_attention
from vrtspike_jax.ops.dispatch import without_cudnn


class ResidualBlock3D(nn.Module):
    """relu(x + conv2(relu(conv1(x)))) with 3x3x3 convolutions.

    Attributes:
        channels: Channels.
        dtype: Compute dtype.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        conv = functools.partial(Conv, self.channels, (3, 3, 3), padding=1, dtype=self.dtype)
        return nn.relu(x + conv(name="conv2")(nn.relu(conv(name="conv1")(x))))


class SpikeEncoder3D(nn.Module):
    """Pyramid of 3D residual convolutions over spike voxels.

    Attributes:
        channels_per_scale: Output channels at scales 1, 1/2, 1/4 and 1/8.
        temporal_strides: Strides in time between scales; 1 keeps every frame.
        spatial_strides: Strides in space between scales.
        blocks: Residual blocks at each scale; 2 as published.
        dtype: Compute dtype.
    """

    channels_per_scale: Sequence[int] = (96,) * 4
    temporal_strides: Sequence[int] = (1, 1, 1)
    spatial_strides: Sequence[int] = (2, 2, 2)
    blocks: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, voxels: Float[Array, "b t h w k"]) -> list[Float[Array, "b t h w c"]]:
        """Returns the features of each scale."""
        scales = len(self.channels_per_scale)
        if not scales - 1 == len(self.temporal_strides) == len(self.spatial_strides):
            raise ValueError(
                f"SpikeEncoder3D: {scales} scales, temporal strides {self.temporal_strides}, "
                f"spatial strides {self.spatial_strides}; want {scales - 1} of each"
            )
        x, features = voxels.astype(self.dtype), []
        for i, channels in enumerate(self.channels_per_scale):
            if i == 0:
                x = Conv(channels, (3, 3, 3), padding=1, dtype=self.dtype, name="in_proj")(x)
            else:
                in_space = self.spatial_strides[i - 1]
                strides = (self.temporal_strides[i - 1], in_space, in_space)
                x = Conv(
                    channels,
                    (3, 3, 3),
                    strides=strides,
                    padding=1,
                    dtype=self.dtype,
                    name=f"downs_{i - 1}",
                )(x)
            x = nn.relu(x)
            for j in range(self.blocks):
                name = f"residuals_{i - 1}_{j}" if i else f"res0_{j}"
                x = ResidualBlock3D(channels, self.dtype, name=name)(x)
            features.append(x)
        return features


class TemporalAttention(nn.Module):
    """Multi-head attention over time at each pixel (`torch.nn.MultiheadAttention`).

    Attributes:
        heads: Heads.
        dropout: Dropout rate of the attention weights.
        time_slope: Where each head's learned slope starts, by which logits fall with the distance
            in frames (ALiBi, Press et al., 2022, learned). 0, as published, is without: then
            nothing tells a head which memory belongs to its own frame.
        kernels: As in `VRT`; "cudnn" has none for this and means "auto".
        dtype: Compute dtype; softmax is float32.
    """

    heads: int
    dropout: float = 0.0
    time_slope: float = 0.0
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: Float[Array, "b t p c"], memory: Float[Array, "b s p c"], train: bool
    ) -> Float[Array, "b t p c"]:
        """Queries from `query`, keys and values from `memory`, at each of P pixels."""
        c = query.shape[-1]
        kernel = self.param("in_proj_weight", nn.initializers.glorot_uniform(), (c, 3 * c))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * c,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)

        def project(x, first, last):
            """Parts `first` to `last` of queries, keys and values in one product."""
            part = slice(first * c, last * c)
            parts = jnp.split(x @ kernel[:, part] + bias[part], last - first, axis=-1)
            return [rearrange(y, "b t p (n d) -> b t p n d", n=self.heads) for y in parts]

        if query is memory:
            q, k, v = project(query, 0, 3)
        else:
            q, k, v = project(query, 0, 1) + project(memory, 1, 3)
        q = q * jnp.asarray((c // self.heads) ** -0.5, q.dtype)
        drop = None
        if self.dropout and train:
            drop = nn.Dropout(self.dropout, deterministic=False)
        bias = None
        if self.time_slope:
            start = nn.initializers.constant(self.time_slope)
            slope = self.param("time_slope", start, (self.heads,))
            times = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])
            bias = -slope[:, None, None] * jnp.abs(times[0] - times[1])
        out = temporal_attention(q, k, v, bias, drop, without_cudnn(self.kernels))
        out = rearrange(out, "b t p n d -> b t p (n d)")
        return Dense(c, dtype=self.dtype, name="out_proj")(out)


def over_pixels(
    block: nn.Module,
    max_batch_tokens: int | None,
    train: bool,
    *features: Float[Array, "b t h w c"],
) -> Float[Array, "b t h w c"]:
    """Applies `block` to (B, T, pixels, C) arrays, at most `max_batch_tokens` pixels at a time.

    Chunks bound the memory of attention over large frames (the original's MAX_BATCH_TOKENS).
    """
    b, _, h, w, _ = features[0].shape
    pixels = [rearrange(f, "b t h w c -> b t (h w) c") for f in features]
    chunk = h * w if max_batch_tokens is None else min(h * w, max(1, max_batch_tokens // b))
    chunks = -(-h * w // chunk)
    chunk = -(-h * w // chunks)  # as even as can be
    if chunks == 1:
        out = block(*pixels, train)
    else:
        padding = [(0, 0), (0, 0), (0, chunks * chunk - h * w), (0, 0)]
        pixels = [
            rearrange(jnp.pad(p, padding), "b t (k p) c -> k b t p c", k=chunks) for p in pixels
        ]
        scanned = nn.scan(
            lambda module, carry, chunked: (carry, module(*chunked, train)),
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
        )
        _, out = scanned(block, (), tuple(pixels))
        out = rearrange(out, "k b t p c -> b t (k p) c")[:, :, : h * w]
    return rearrange(out, "b t (h w) c -> b t h w c", h=h)


class SpikeTemporalSelfAttention(nn.Module):
    """Pre-norm transformer block over time at one scale.

    Attributes:
        heads: Heads.
        dropout: Dropout rate of the attention weights.
        mlp_ratio: Width of the feed-forward layer over the channels.
        time_slope: As in `TemporalAttention`.
        kernels: As in `TemporalAttention`.
        dtype: Compute dtype.
    """

    heads: int = 4
    dropout: float = 0.0
    mlp_ratio: float = 2.0
    time_slope: float = 0.0
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t p c"], train: bool = False) -> Array:
        y = LayerNorm(dtype=self.dtype, name="ln1")(x)
        attention = TemporalAttention(
            self.heads, self.dropout, self.time_slope, self.kernels, self.dtype, name="attn"
        )
        x = x + attention(y, y, train)
        y = LayerNorm(dtype=self.dtype, name="ln2")(x)
        y = Dense(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="mlp_0")(y)
        return x + Dense(x.shape[-1], dtype=self.dtype, name="mlp_2")(gelu(y))


class SpikeTemporalSA(nn.Module):
    """`SpikeTemporalSelfAttention` at every scale.

    Attributes:
        max_batch_tokens: Pixels (times batch) attended at once; None means all.
        (others): as in `SpikeTemporalSelfAttention`.
    """

    heads: int = 4
    dropout: float = 0.0
    mlp_ratio: float = 2.0
    time_slope: float = 0.0
    max_batch_tokens: int | None = None
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b t h w c"]], train: bool = False
    ) -> list[Float[Array, "b t h w c"]]:
        fields = self.heads, self.dropout, self.mlp_ratio, self.time_slope
        fields += self.kernels, self.dtype
        blocks = [
            SpikeTemporalSelfAttention(*fields, name=f"blocks_{i}") for i in range(len(features))
        ]
        return [
            over_pixels(block, self.max_batch_tokens, train, x)
            for block, x in zip(blocks, features, strict=True)
        ]


class TemporalCrossAttnFuseBlock(nn.Module):
    """Cross-attention over time: queries from the frames, keys and values from the spikes.

    Attributes:
        (all): as in `SpikeTemporalSelfAttention`.
    """

    heads: int = 4
    dropout: float = 0.0
    mlp_ratio: float = 2.0
    time_slope: float = 0.0
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, frames: Float[Array, "b t p c"], spikes: Float[Array, "b t p c"], train: bool = False
    ) -> Float[Array, "b t p c"]:
        query = LayerNorm(dtype=self.dtype, name="ln_q")(frames)
        memory = LayerNorm(dtype=self.dtype, name="ln_kv")(spikes)
        attention = TemporalAttention(
            self.heads, self.dropout, self.time_slope, self.kernels, self.dtype, name="attn_attn"
        )
        x = frames + attention(query, memory, train)
        y = LayerNorm(dtype=self.dtype, name="ln_ffn")(x)
        y = Dense(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="ffn_0")(y)
        return x + Dense(x.shape[-1], dtype=self.dtype, name="ffn_2")(gelu(y))


class ConcatFuseBlock(nn.Module):
    """Fusion at each pixel and frame alone: a linear map of both, joined along the channels.

    Attributes:
        mlp_ratio: Width of the feed-forward layer over the channels.
        dtype: Compute dtype.
    """

    mlp_ratio: float = 2.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, frames: Float[Array, "b t p c"], spikes: Float[Array, "b t p c"], train: bool = False
    ) -> Float[Array, "b t p c"]:
        del train  # There is no dropout.
        both = [
            LayerNorm(dtype=self.dtype, name="ln_q")(frames),
            LayerNorm(dtype=self.dtype, name="ln_kv")(spikes),
        ]
        merge = Dense(frames.shape[-1], dtype=self.dtype, name="merge")
        x = frames + merge(jnp.concatenate(both, axis=-1))
        y = LayerNorm(dtype=self.dtype, name="ln_ffn")(x)
        y = Dense(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="ffn_0")(y)
        return x + Dense(x.shape[-1], dtype=self.dtype, name="ffn_2")(gelu(y))


class TemporalCrossAttnFuse(nn.Module):
    """`TemporalCrossAttnFuseBlock` after each of the encoder's stages.

    Attributes:
        scales: Number of encoder stages.
        (others): as in `SpikeTemporalSA`.
    """

    scales: int = 4
    heads: int = 4
    dropout: float = 0.0
    mlp_ratio: float = 2.0
    time_slope: float = 0.0
    max_batch_tokens: int | None = None
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.fuse_blocks = [self._block() for _ in range(self.scales)]

    def _block(self) -> nn.Module:
        """The block of one scale, without parameters yet."""
        fields = self.heads, self.dropout, self.mlp_ratio, self.time_slope
        fields += self.kernels, self.dtype
        return TemporalCrossAttnFuseBlock(*fields)

    def __call__(
        self,
        scale: int,
        frames: Float[Array, "b t h w c"],
        spikes: Float[Array, "b t hs ws c"],
        train: bool = False,
    ) -> Float[Array, "b t h w c"]:
        """Fuses at one scale; spikes of another resolution are resized bilinearly."""
        b, (h, w) = spikes.shape[0], frames.shape[2:4]
        spikes = resize_bilinear(rearrange(spikes, "b t h w c -> (b t) h w c"), h, w)
        spikes = rearrange(spikes, "(b t) h w c -> b t h w c", b=b)
        return over_pixels(self.fuse_blocks[scale], self.max_batch_tokens, train, frames, spikes)


class ConcatFuse(TemporalCrossAttnFuse):
    """`ConcatFuseBlock` after each of the encoder's stages; not in the published model.

    Attributes:
        heads, dropout, time_slope, kernels: Without effect, as nothing attends.
        (others): as in `TemporalCrossAttnFuse`.
    """

    def _block(self) -> nn.Module:
        return ConcatFuseBlock(self.mlp_ratio, self.dtype)
