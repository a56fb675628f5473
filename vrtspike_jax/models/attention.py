"""Temporal mutual self attention (VRT, section 3.2): windows, blocks and groups of blocks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vrtspike_jax.models.layers import (
    Dense,
    GatedMlpParameters,
    LayerNorm,
    LayerNormParameters,
    drop_path_scale,
)
from vrtspike_jax.ops import gated_mlp, window_attention

Size3 = tuple[int, int, int]
REMATS = ("none", "attn", "ffn", "block")


def clamp_window(size: Size3, window: Size3, shift: Size3) -> tuple[Size3, Size3]:
    """Shrinks the window to the feature map and drops the shift where one window covers it."""
    clamped = tuple(min(s, w) for s, w in zip(size, window, strict=True))
    shift = tuple(0 if s <= w else f for s, w, f in zip(size, window, shift, strict=True))
    return clamped, shift


def shift_regions(padded: Size3, window: Size3, shift: Size3) -> Int[np.ndarray, "windows n"]:
    """Numbers the parts that a cyclic shift brings together, token by token of every window.

    Tokens with different numbers were not neighbours before the shift (VRT's `compute_mask`).
    """
    region = np.zeros(padded, np.int32)
    for axis, (w, s) in enumerate(zip(window, shift, strict=True)):
        index = np.zeros(padded[axis], np.int32)
        if s:
            index[-w:-s], index[-s:] = 1, 2
        region = 3 * region + np.expand_dims(index, [i for i in range(3) if i != axis])
    return partition(region[None, ..., None], window)[..., 0]


def partition(x: Array, window: Size3) -> Array:
    """Cuts (B, T, H, W, C) into windows (B * windows, tokens, C)."""
    b, t, h, w, c = x.shape
    wt, wh, ww = window
    x = x.reshape(b, t // wt, wt, h // wh, wh, w // ww, ww, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, c)


def merge(windows: Array, window: Size3, size: Size3) -> Array:
    """Inverse of `partition` for a feature map of T, H, W = `size`."""
    (t, h, w), (wt, wh, ww) = size, window
    x = windows.reshape(-1, t // wt, h // wh, w // ww, wt, wh, ww, windows.shape[-1])
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, t, h, w, windows.shape[-1])


def relative_position_index(window: Size3) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for each pair of tokens in a window."""
    coordinates = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(3, -1)
    relative = coordinates[:, :, None] - coordinates[:, None, :]
    spans = [2 * w - 1 for w in window]
    relative += np.array(window).reshape(3, 1, 1) - 1
    return (relative[0] * spans[1] + relative[1]) * spans[2] + relative[2]


def sine_position_encoding(height: int, width: int, dim: int) -> Float[np.ndarray, "n dim"]:
    """DETR's normalised sine encoding of rows (first half of the channels) and columns."""

    def axis(length: int) -> np.ndarray:
        position = np.arange(1, length + 1, dtype=np.float32)
        return position / (length + 1e-6) * (2 * math.pi)

    half = dim // 2
    channel = np.arange(half, dtype=np.float32)
    period = np.float32(10000) ** (2 * (channel // 2) / half)

    def encode(position: np.ndarray) -> np.ndarray:
        angle = position[:, None] / period
        return np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=2).reshape(-1, half)

    rows = np.repeat(encode(axis(height)), width, axis=0)
    columns = np.tile(encode(axis(width)), (height, 1))
    return np.concatenate([rows, columns], axis=1).astype(np.float32)


class WindowAttention(nn.Module):
    """Self attention with relative position bias and, optionally, mutual attention (VRT eq. 2-4).

    Attributes:
        dim: Channels.
        window_size: Window (T, H, W) that the bias table covers.
        num_heads: Heads.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor of the logits; None means head_dim ** -0.5.
        mut_attn: Adds mutual attention between the two frames of a window.
        dtype: Compute dtype.
    """

    dim: int
    window_size: Size3
    num_heads: int
    qkv_bias: bool = True
    qk_scale: float | None = None
    mut_attn: bool = True
    dtype: jnp.dtype = jnp.float32

    def _project(self, x: Array, name: str) -> list[Array]:
        """Queries (scaled), keys and values, each (M, N, heads, head_dim)."""
        head_dim = self.dim // self.num_heads
        qkv = Dense(3 * self.dim, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(x)
        qkv = qkv.reshape(x.shape[:2] + (3, self.num_heads, head_dim))
        q, k, v = (qkv[:, :, i] for i in range(3))
        return [q * jnp.asarray(self.qk_scale or head_dim**-0.5, q.dtype), k, v]

    @nn.compact
    def __call__(
        self, x: Float[Array, "m n c"], regions: Int[Array, "windows n"] | None
    ) -> Float[Array, "m n c"]:
        m, n, c = x.shape
        spans = math.prod(2 * w - 1 for w in self.window_size)
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.truncated_normal(0.02),
            (spans, self.num_heads),
        )
        # Published behaviour for clips shorter than the window: the first tokens' part.
        index = relative_position_index(self.window_size)[:n, :n]
        bias = table[index.reshape(-1)].reshape(n, n, -1).transpose(2, 0, 1)
        out = window_attention(*self._project(x, "qkv_self"), bias, regions).reshape(m, n, c)
        if self.mut_attn:
            position = sine_position_encoding(*self.window_size[1:], c)
            qkv = self._project(x + np.tile(position, (2, 1)).astype(x.dtype), "qkv_mut")
            half = n // 2
            q, k, v = (a.reshape((m, 2, half) + a.shape[2:]) for a in qkv)
            # Each frame's place receives what the other frame's queries find in it.
            pairs = [a.reshape((2 * m, half) + a.shape[3:]) for a in (q[:, ::-1], k, v)]
            if regions is not None:
                regions = jnp.repeat(regions[:, :half], 2, axis=0)
            mutual = window_attention(*pairs, None, regions).reshape(m, n, c)
            out = jnp.concatenate([mutual, out], axis=-1)
        return Dense(c, dtype=self.dtype, name="proj")(out)


class TMSA(nn.Module):
    """One block: window attention and a gated feed-forward layer, both residual.

    Attributes:
        shifted: Whether windows are shifted by half their size.
        mlp_ratio: Width of the feed-forward layer over `dim`.
        remat: What the backward pass recomputes: "none", "attn", "ffn" or "block" (both).
        stochastic: Whether branches are dropped at the rate given to the call.
        (others): as in `WindowAttention`.
    """

    dim: int
    window_size: Size3
    num_heads: int
    shifted: bool
    mut_attn: bool
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    remat: str = "none"
    stochastic: bool = False
    dtype: jnp.dtype = jnp.float32

    def _attend(self, x: Float[Array, "b t h w c"], scale: Array | None) -> Array:
        original, size = x, x.shape[1:4]
        shift = tuple(w // 2 if self.shifted else 0 for w in self.window_size)
        window, shift = clamp_window(size, self.window_size, shift)
        x = LayerNorm(dtype=self.dtype, name="norm1")(x)
        padding = [(0, -s % w) for s, w in zip(size, window, strict=True)]
        x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
        padded = x.shape[1:4]
        regions = None
        if any(shift):
            x = jnp.roll(x, [-s for s in shift], axis=(1, 2, 3))
            # Behind a barrier, or the compiler expands the mask to a (windows, N, N) constant.
            regions = jax.lax.optimization_barrier(shift_regions(padded, window, shift))
        attention = WindowAttention(
            self.dim,
            self.window_size,
            self.num_heads,
            self.qkv_bias,
            self.qk_scale,
            self.mut_attn,
            self.dtype,
            name="attn",
        )
        x = merge(attention(partition(x, window), regions), window, padded)
        if any(shift):
            x = jnp.roll(x, shift, axis=(1, 2, 3))
        x = x[:, : size[0], : size[1], : size[2]]
        if scale is not None:
            x *= scale.reshape(-1, 1, 1, 1, 1).astype(x.dtype)
        return original + x

    def _feed_forward(self, x: Float[Array, "b t h w c"], scale: Array | None) -> Array:
        hidden = int(self.dim * self.mlp_ratio)
        norm = LayerNormParameters(name="norm2")(self.dim)
        return gated_mlp(x, *norm, *GatedMlpParameters(hidden, name="mlp")(self.dim), scale)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], drop_rate: Float[Array, ""]
    ) -> Float[Array, "b t h w c"]:
        for branch, name in ((TMSA._attend, "attn"), (TMSA._feed_forward, "ffn")):
            scale = None
            if self.stochastic:
                scale = drop_path_scale(self.make_rng("dropout"), x.shape[0], drop_rate)
            if self.remat in (name, "block"):
                branch = nn.remat(branch)
            x = branch(self, x, scale)
        return x


class TMSAPair(nn.Module):
    """A plain block and a shifted one: the unit that repeats along a group.

    Attributes:
        block: Fields of both blocks.
    """

    block: dict

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], drop_rates: Float[Array, "2"]
    ) -> tuple[Array, None]:
        x = TMSA(**self.block, shifted=False, name="plain")(x, drop_rates[0])
        return TMSA(**self.block, shifted=True, name="shifted")(x, drop_rates[1]), None


class TMSAG(nn.Module):
    """Group of blocks that alternate between plain and shifted windows.

    Pairs are scanned over stacked parameters, so that the compiler sees one pair; an odd last
    block stands on its own.

    Attributes:
        depth: Number of blocks.
        block: Fields of the blocks, as in `TMSA`.
        drop_rates: Stochastic depth rates; a group uses the first `depth` of them.
    """

    depth: int
    block: dict
    drop_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        pairs, odd = divmod(self.depth, 2)
        rates = jnp.array(self.drop_rates[: self.depth], jnp.float32)
        if pairs:
            scanned = nn.scan(
                TMSAPair,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=pairs,
            )
            x, _ = scanned(self.block, name="pairs")(x, rates[: 2 * pairs].reshape(pairs, 2))
        if odd:
            x = TMSA(**self.block, shifted=False, name="last")(x, rates[-1])
        return x
