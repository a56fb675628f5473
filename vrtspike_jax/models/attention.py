"""Temporal mutual self attention (VRT, section 3.2): windows, blocks and groups of blocks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from vrtspike_jax.models.layers import (
    GatedMlpParameters,
    LayerNormParameters,
    Projection,
    add_product,
)
from vrtspike_jax.models.sharing import apply_shared
from vrtspike_jax.models.stored import apart
from vrtspike_jax.ops import gated_mlp, layer_norm, normed_projection, shifted_window_attention
from vrtspike_jax.ops.dispatch import without_cudnn
from vrtspike_jax.ops.window_attention import SAVED_NAMES
from vrtspike_jax.ops.window_layout import Size3

# Name of a branch's residual sum, for rematerialisation policies.
ATTENDED = "attended"
REMATS = ("none", "light", "attn", "ffn", "block")


def clamp_window(size: Size3, window: Size3, shift: Size3) -> tuple[Size3, Size3]:
    """Shrinks the window to the feature map and drops the shift where one window covers it."""
    clamped = tuple(min(s, w) for s, w in zip(size, window, strict=True))
    shift = tuple(0 if s <= w else f for s, w, f in zip(size, window, shift, strict=True))
    return clamped, shift


def _position_rows(window: Size3) -> Int[np.ndarray, " n"]:
    """Each token's place: rows of the bias table are differences of two, and a constant."""
    _, height, width = (2 * w - 1 for w in window)
    coordinates = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), axis=-1)
    return coordinates.reshape(-1, 3) @ (height * width, width, 1)


def relative_position_index(window: Size3) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for each pair of tokens in a window."""
    rows = _position_rows(window)
    return rows[:, None] - rows + rows[-1]


@functools.partial(jax.jit, static_argnums=(1, 2))
def position_bias(
    table: Float[Array, "spans heads"], window: Size3, tokens: int
) -> Float[Array, "heads tokens tokens"]:
    """Bias of the logits between a window's first `tokens` tokens.

    Published behaviour for clips shorter than the window that the table covers.
    """
    rows = _position_rows(window).astype(np.int32)
    # From two vectors: as a constant the index of 320 tokens has 400 KB, and every block has one.
    index = jnp.array(rows[:tokens, None]) - rows[:tokens] + rows[-1]
    bias = table.at[index.reshape(-1)].get(mode="promise_in_bounds")
    return bias.reshape(tokens, tokens, -1).transpose(2, 0, 1)


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
        kernels: Implementation of the operations, as in `shifted_window_attention`.
        dtype: Compute dtype.
    """

    dim: int
    window_size: Size3
    num_heads: int
    qkv_bias: bool = True
    qk_scale: float | None = None
    mut_attn: bool = True
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        spans = math.prod(2 * w - 1 for w in self.window_size)
        self.relative_position_bias_table = self.param(
            "relative_position_bias_table",
            nn.initializers.truncated_normal(0.02),
            (spans, self.num_heads),
        )
        # Queries, keys and values, packed along the channels.
        sizes = self.dim, 3 * self.dim, self.qkv_bias, self.dtype
        self.qkv_self = Projection(*sizes)
        if self.mut_attn:
            self.qkv_mut = Projection(*sizes)
        self.proj = Projection(self.dim * (2 if self.mut_attn else 1), self.dim, dtype=self.dtype)

    def _position(self, x: Array, shift: Size3) -> Array:
        """Adds the sine encoding of each token's place in its window."""
        _, height, width = self.window_size
        encoding = sine_position_encoding(height, width, self.dim).reshape(height, width, -1)
        encoding = np.roll(encoding, shift[1:], axis=(0, 1)).astype(x.dtype)
        b, t, h, w, c = x.shape
        tiles = x.reshape(b, t, h // height, height, w // width, width, c)
        return (tiles + encoding[:, None]).reshape(x.shape)

    def project(
        self, x: Float[Array, "b t h w c"], shift: Size3
    ) -> tuple[Float[Array, "b t h w c3"], Float[Array, "b t h w c3"] | None]:
        """Queries, keys and values of a map, and those for mutual attention if there is any."""
        mutual = self.qkv_mut(self._position(x, shift)) if self.mut_attn else None
        return self.qkv_self(x), mutual

    def project_normed(
        self,
        x: Float[Array, "b t h w c"],
        norm: tuple[Float[Array, " c"], Float[Array, " c"]],
        scale: Float[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t h w c3"], Float[Array, "b t h w c"]]:
        """Queries, keys and values of LayerNorm's result, and its input for the residual sum."""
        weights = self.qkv_self.kernel, self.qkv_self.bias
        carried = self.proj.bias, scale
        kernels = without_cudnn(self.kernels)
        return normed_projection(x, *norm, *weights, carried, self.dtype, kernels)

    def __call__(
        self,
        qkv: Float[Array, "b t h w c3"],
        mutual: Float[Array, "b t h w c3"] | None,
        window: Size3,
        shift: Size3,
        scale: Float[Array, " b"] | None = None,
        kept_frames: int | None = None,
    ) -> Float[Array, "b t h w c"]:
        """Attends in windows of a map whose size they divide, after rolling it by -`shift`.

        The results, multiplied by each sample's `scale`, contain the bias of `proj` as a constant.
        Those past the first `kept_frames` frames are not to be used.
        """
        table = self.relative_position_bias_table
        carried = [self.qkv_self.bias]
        if self.mut_attn:
            carried.append(self.qkv_mut.bias)
        out = shifted_window_attention(
            qkv,
            position_bias(table, self.window_size, math.prod(window)),
            window=window,
            shift=shift,
            mutual=mutual,
            carried=tuple(carried) if self.qkv_bias else None,
            scale=self.qk_scale or (self.dim // self.num_heads) ** -0.5,
            kept_frames=kept_frames,
            implementation=self.kernels,
        )
        return self.proj(out, scale)


class TMSA(nn.Module):
    """One block: window attention and a gated feed-forward layer, both residual.

    Attributes:
        shifted: Whether windows are shifted by half their size.
        mlp_ratio: Width of the feed-forward layer over `dim`.
        remat: What the backward pass recomputes: "none", "attn", "ffn", "block" (both), or "light":
            both, save for what the attention kernels return, so that these run once, and for the
            residual sum of mutual attention.
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
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def _attend(self, x: Float[Array, "b t h w c"], scale: Array | None) -> Array:
        size = x.shape[1:4]
        shift = tuple(w // 2 if self.shifted else 0 for w in self.window_size)
        window, shift = clamp_window(size, self.window_size, shift)
        attention = WindowAttention(
            self.dim,
            self.window_size,
            self.num_heads,
            self.qkv_bias,
            self.qk_scale,
            self.mut_attn,
            self.kernels,
            self.dtype,
            name="attn",
        )
        norm = LayerNormParameters(name="norm1")(self.dim)
        padding = [(0, -s % w) for s, w in zip(size, window, strict=True)]
        if self.mut_attn or any(map(any, padding)):
            carried, kernels = (attention.proj.bias, scale), without_cudnn(self.kernels)
            x, original = layer_norm(x, *norm, self.dtype, True, kernels, carried)
            x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
            qkv, mutual = attention.project(x, shift)
        else:
            mutual = None
            qkv, original = attention.project_normed(x, norm, scale)
        # Padded frames are keys and values like others (published behaviour), but their results go.
        x = attention(qkv, mutual, window, shift, scale, size[0])
        x = x[:, : size[0], : size[1], : size[2]]
        return checkpoint_name(add_product(original, x), ATTENDED)

    def _feed_forward(self, x: Float[Array, "b t h w c"], scale: Array | None) -> Array:
        hidden = int(self.dim * self.mlp_ratio)
        norm = LayerNormParameters(name="norm2")(self.dim)
        weights = GatedMlpParameters(hidden, name="mlp")(self.dim)
        kernels = without_cudnn(self.kernels)
        return gated_mlp(x, *norm, *weights, scale, implementation=kernels)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], scales: Float[Array, "2 b"] | None = None
    ) -> Float[Array, "b t h w c"]:
        """Applies the block; `scales` are factors of its two branches, for stochastic depth."""
        scales = (None, None) if scales is None else tuple(scales)
        attend, feed_forward = TMSA._attend, TMSA._feed_forward
        if self.remat == "light":
            # With mutual attention, that sum takes longest for its bytes: windows of two frames pad
            # maps of an odd number of frames, and cuBLAS cannot add to a part of a product.
            names = (*SAVED_NAMES, ATTENDED) if self.mut_attn else SAVED_NAMES
            keep = jax.checkpoint_policies.save_only_these_names(*names)
            return nn.remat(TMSA._both, policy=keep)(self, x, *scales)
        if self.remat in ("attn", "block"):
            attend = nn.remat(attend)
        if self.remat in ("ffn", "block"):
            feed_forward = nn.remat(feed_forward)
        return feed_forward(self, attend(self, x, scales[0]), scales[1])

    def _both(self, x: Array, attention_scale: Array | None, scale: Array | None) -> Array:
        return self._feed_forward(self._attend(x, attention_scale), scale)


class TMSAPair(nn.Module):
    """A plain block and a shifted one: the unit that repeats along a group.

    Attributes:
        block: Fields of both blocks.
    """

    block: dict

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], scales: Float[Array, "2 2 b"] | None = None
    ) -> tuple[Array, None]:
        plain, shifted = (None, None) if scales is None else scales
        x = TMSA(**self.block, shifted=False, name="plain")(x, plain)
        return TMSA(**self.block, shifted=True, name="shifted")(x, shifted), None


# Jitted for the same reason as `apply_shared`.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_pairs(
    pair: TMSAPair, count: int, params: dict | tuple, scales: Array | None, x: Array
) -> Array:
    """Applies pairs one after another, each with parameters of its own or its part of a stack."""

    def split(stacked: Array) -> list[Array]:
        # Not indexed: the gradient of that would be a sum of padded parts instead of a stack.
        return [jax.lax.squeeze(part, (0,)) for part in jax.lax.split(stacked, (1,) * count)]

    if not isinstance(params, tuple):
        params = apart(jax.tree.map(split, {"pairs": params}))["pairs"]
    for i in range(count):
        x, _ = apply_shared(pair, params[i], x, None if scales is None else scales[i])
    return x


class TMSAG(nn.Module):
    """Group of blocks that alternate between plain and shifted windows.

    Pairs are scanned over stacked parameters, so that the compiler sees one pair; an odd last
    block stands on its own.

    Attributes:
        depth: Number of blocks.
        block: Fields of the blocks, as in `TMSA`.
        unroll: As in `VRT`.
    """

    depth: int
    block: dict
    unroll: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], scales: Float[Array, "depth 2 b"] | None = None
    ) -> Float[Array, "b t h w c"]:
        """Applies the blocks; `scales` are factors of their branches, for stochastic depth."""
        pairs, odd = divmod(self.depth, 2)
        in_pairs = None
        if scales is not None:
            in_pairs = scales[: 2 * pairs].reshape(pairs, 2, *scales.shape[1:])
        if pairs and self.unroll and not self.is_initializing():
            params = self.variables["params"]["pairs"]
            x = _apply_pairs(TMSAPair(self.block, parent=None), pairs, params, in_pairs, x)
        elif pairs:
            scanned = nn.scan(
                TMSAPair,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=pairs,
                # There are no such constants, and to look for them traces the pair once more.
                check_constancy_invariants=False,
            )
            x, _ = scanned(self.block, name="pairs")(x, in_pairs)
        if odd:
            last = None if scales is None else scales[-1]
            x = TMSA(**self.block, shifted=False, name="last")(x, last)
        return x
