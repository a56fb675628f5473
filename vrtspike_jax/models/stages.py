"""Parts that VRT is made of: entries, attending and convolving stages, enlargement."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.attention import TMSAG
from vrtspike_jax.models.layers import Dense, FrameConv, LayerNorm, add_product
from vrtspike_jax.models.residual import ResidualGroup
from vrtspike_jax.models.sharing import apply_shared
from vrtspike_jax.models.warping import OFFSET_FEATURES, RAW_OFFSETS, ParallelWarping
from vrtspike_jax.ops.deform_conv import SAVED_NAME
from vrtspike_jax.ops.partition import as_rows


class Reshape(nn.Module):
    """Entry of a stage: keeps, halves (`down`) or doubles (`up`) height and width.

    Attributes:
        kind: "none", "down" or "up".
        features: Output channels of "down" and "up".
        dtype: Compute dtype.
    """

    kind: str
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 features"]:
        if self.kind == "down":
            x = rearrange(x, "b t (h y) (w x) c -> b t h w (x y c)", y=2, x=2)
        elif self.kind == "up":
            x = rearrange(x, "b t h w (x y c) -> b t (h y) (w x) c", y=2, x=2)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        if self.kind == "none":
            return x
        return Dense(self.features, dtype=self.dtype, name="linear")(x)


def mutual_blocks(depth: int, mul_attn_ratio: float) -> int:
    """How many of a stage's blocks have mutual attention: its first ones."""
    return int(depth * mul_attn_ratio)


def _frugal(*names: str) -> type[nn.Module]:
    """Warping that keeps these arrays for the backward pass, and computes others again."""
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    return nn.remat(ParallelWarping, policy=policy)


# The sampled features are a small part of what warping keeps otherwise, and its dearest; next are
# the convolutions that lead to the offsets, and then the offsets.
_WARPINGS = {
    "block": _frugal(SAVED_NAME),
    "light": _frugal(SAVED_NAME, OFFSET_FEATURES, RAW_OFFSETS),
}


class Stage(nn.Module):
    """Mutual and self attention, self attention alone, then parallel warping (VRT fig. 2).

    Attributes:
        dim: Channels.
        depth: Blocks in both groups together.
        mul_attn_ratio: Share of blocks with mutual attention.
        window_size: Window (T, H, W) of the second group; the first attends to 2 frames.
        block: Fields of the blocks, as in `TMSA`.
        reshape: "none", "down" or "up".
        pa_frames: Neighbours that are warped, both sides together; 0 for none.
        deformable_groups: As in `FlowGuidedDeformConv`.
        max_residue_magnitude: As in `FlowGuidedDeformConv`.
        unroll: As in `VRT`.
        kernels: As in `VRT`.
        dtype: Compute dtype.
    """

    dim: int
    depth: int
    mul_attn_ratio: float
    window_size: tuple[int, int, int]
    block: dict
    reshape: str
    pa_frames: int
    deformable_groups: int
    max_residue_magnitude: float
    unroll: bool = False
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        backward: Sequence[Array],
        forward: Sequence[Array],
        scales: Float[Array, "depth 2 b"] | None = None,
    ) -> Array:
        x = Reshape(self.reshape, self.dim, self.dtype, name="reshape")(x)
        mutual = mutual_blocks(self.depth, self.mul_attn_ratio)
        groups = (
            (slice(mutual), (2, *self.window_size[1:]), True),
            (slice(mutual, self.depth), self.window_size, False),
        )
        for i, (blocks, window, mut_attn) in enumerate(groups, 1):
            block = {**self.block, "window_size": window, "mut_attn": mut_attn}
            fields = len(range(self.depth)[blocks]), block, self.unroll
            group = TMSAG(*fields, name=f"residual_group{i}")
            y = group(x, None if scales is None else scales[blocks])
            linear = Dense(self.dim, dtype=self.dtype, name=f"linear{i}")
            x = add_product(x, linear(as_rows(y)))
        if not self.pa_frames:
            return x
        warping = _WARPINGS.get(self.block["remat"], ParallelWarping)
        fields = self.dim, self.deformable_groups, self.max_residue_magnitude
        fields += self.kernels, self.dtype
        if self.is_initializing():
            return warping(*fields, name="warping")(x, backward, forward)
        params = self.variables["params"]["warping"]
        return apply_shared(warping(*fields, parent=None), params, x, backward, forward)


class ConvStage(nn.Module):
    """A stage of residual convolutions in the place of attention and warping; not in VRT.

    Attributes:
        dim: Channels.
        depth: Residual blocks.
        reshape: "none", "down" or "up".
        remat: Whether the backward pass computes each block again.
        dtype: Compute dtype.
    """

    dim: int
    depth: int
    reshape: str
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *_: object) -> Array:
        """Applies the stage to features; flows and scales, for other stages, are not used."""
        x = Reshape(self.reshape, self.dim, self.dtype, name="reshape")(x)
        return ResidualGroup(self.dim, self.depth, self.remat, self.dtype, name="convolutions")(x)


class RTMSA(nn.Module):
    """Residual group of self attention blocks, used in stage 8.

    Attributes:
        dim: Channels.
        depth: Blocks.
        block: Fields of the blocks, as in `TMSA`.
        unroll: As in `VRT`.
        dtype: Compute dtype.
    """

    dim: int
    depth: int
    block: dict
    unroll: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], scales: Float[Array, "depth 2 b"] | None = None
    ) -> Float[Array, "b t h w c"]:
        y = TMSAG(self.depth, self.block, self.unroll, name="residual_group")(x, scales)
        linear = Dense(self.dim, dtype=self.dtype, name="linear")
        return add_product(x, linear(as_rows(y)))


class Upsample(nn.Module):
    """Pixel-shuffle upsampling of every frame, by powers of two or by 3.

    Attributes:
        scale: Factor.
        features: Channels.
        dtype: Compute dtype.
    """

    scale: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
        steps = [3] if self.scale == 3 else [2] * (self.scale.bit_length() - 1)
        if np.prod(steps) != self.scale:
            raise ValueError(f"upscale is {self.scale}, want 3 or a power of two")
        # Indices are the published module's, which counts transposes and activations.
        for i, step in enumerate(steps):
            x = FrameConv(self.features * step**2, self.dtype, name=f"upsample_{5 * i}")(x)
            x = rearrange(x, "b t h w (c y x) -> b t (h y) (w x) c", y=step, x=step)
            x = nn.leaky_relu(x, 0.1)
        return FrameConv(self.features, self.dtype, name=f"upsample_{5 * len(steps)}")(x)
