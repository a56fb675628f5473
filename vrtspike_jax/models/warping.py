"""Flow between frames and flow-guided deformable parallel warping (VRT, section 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import ConvParameters, GatedMlp, named_leaky_relu, torch_uniform
from vrtspike_jax.ops import (
    conv,
    deform_conv2d,
    flow_guided_deform_conv,
    flow_warp,
    join,
    quad_size,
    raw_channels,
)
from vrtspike_jax.ops.dispatch import without_cudnn

# Names of what the convolutions of the sampling offsets return, the last of them and the others
# before it, for rematerialisation policies.
RAW_OFFSETS = "raw_offsets"
OFFSET_FEATURES = "offset_features"
# flows[distance - 1][scale]: (B, T - distance, H / 2**scale, W / 2**scale, 2)
Flows = list[list[Float[Array, "b pairs h w 2"]]]


def _warp(x: Float[Array, "b t h w c"], flow: Float[Array, "b t h w 2"], mode: str = "bilinear"):
    """`flow_warp` of every frame."""
    b = x.shape[0]
    fold = "b t h w c -> (b t) h w c"
    warped = flow_warp(rearrange(x, fold), rearrange(flow, fold), mode)
    return rearrange(warped, "(b t) h w c -> b t h w c", b=b)


def compose_flows(flows: Flows, distance: int, backward: bool) -> Flows:
    """Extends neighbour flows to frames up to `distance` apart by chaining them.

    Args:
        flows: Flows between neighbours, `[[scale 0, 1, 2, 3]]`.
        distance: Largest distance, 1 to 3.
        backward: True for flows from t + 1 to t (VRT's `flows_backward`), False for forward.

    Returns:
        `flows` with one entry for each distance.
    """
    flows = list(flows)
    for step in range(2, distance + 1):
        longer = []
        for near, far in zip(flows[0], flows[-1], strict=True):
            if backward:
                last, first = near[:, step - 1 :], far[:, :-1]
            else:
                last, first = near[:, : 1 - step], far[:, 1:]
            longer.append(first + _warp(last, first))
        flows.append(longer)
    return flows


def align_frames(
    frames: Float[Array, "b t h w c"],
    backward: Float[Array, "b pairs h w 2"],
    forward: Float[Array, "b pairs h w 2"],
) -> Float[Array, "b t h w c8"]:
    """Next and previous frame aligned to each frame by `nearest4` warping; zero at the ends."""
    from_next = _warp(frames[:, 1:], backward, "nearest4")
    from_previous = _warp(frames[:, :-1], forward, "nearest4")
    return jnp.concatenate([_delay(from_next, -1), _delay(from_previous, 1)], axis=-1)


def _delay(x: Float[Array, "b t h w c"], frames: int) -> Array:
    """Lengthens a clip by `frames` zero frames at its start, or at its end if negative."""
    padding = (frames, 0) if frames > 0 else (0, -frames)
    return jnp.pad(x, [(0, 0), padding, (0, 0), (0, 0), (0, 0)])


class FlowGuidedDeformConv(nn.Module):
    """Deformable convolution whose offsets are flow plus a learned residual.

    VRT's `DCNv2PackFlowGuided`, after BasicVSR++. The filter is grouped by the source frames.

    Attributes:
        dim: Channels of one frame and of the output.
        deformable_groups: Groups of channels with offsets of their own, over all sources.
        max_residue_magnitude: Bound of the learned residual in pixels.
        kernels: Implementation of warping and sampling, as in `VRT`.
        dtype: Compute dtype; offsets are float32.
    """

    dim: int
    deformable_groups: int
    max_residue_magnitude: float
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        sources: list[Float[Array, "n h w c"]],
        target: Float[Array, "n h w c"],
        flows: list[Float[Array, "n h w 2"]],
    ) -> Float[Array, "n h w c"]:
        kernels = without_cudnn(self.kernels)
        warped = [
            flow_warp(x, flow, implementation=kernels)
            for x, flow in zip(sources, flows, strict=True)
        ]
        parts = [*warped, target, *(f.astype(self.dtype) for f in flows)]
        y, channels = join(parts, kernels), sum(part.shape[-1] for part in parts)
        for i in range(3):
            parameters = ConvParameters(self.dim, (3, 3), name=f"conv_offset_{2 * i}")(channels)
            kernel, bias = (a.astype(self.dtype) for a in parameters)
            y = named_leaky_relu(conv(y, kernel, kernels) + bias, OFFSET_FEATURES)
            channels = self.dim
        x = jnp.concatenate(sources, axis=-1)
        weight = self.param("weight", torch_uniform, (3, 3, self.dim, self.dim))
        bias = self.param("bias", nn.initializers.zeros, (self.dim,))
        flow = jnp.stack(flows, axis=3)
        groups, last = self.deformable_groups, "conv_offset_6"
        if groups % len(flows) == 0:
            quad = quad_size(groups, len(flows), x.shape[-1])
            y = ReorderedConv(tuple(raw_channels(groups, quad)), kernels, self.dtype, name=last)(y)
            y = checkpoint_name(y, RAW_OFFSETS)
            y = y.reshape(*y.shape[:3], groups // quad, 9, 3, quad)
            return flow_guided_deform_conv(
                x, y, flow, weight, bias, self.max_residue_magnitude, kernels
            )
        order = tuple(range(27 * groups))
        y = ReorderedConv(order, kernels, self.dtype, name=last)(y).astype(jnp.float32)
        residual = self.max_residue_magnitude * jnp.tanh(y[..., : 18 * groups])
        # As published, sources share the (group, tap) pairs evenly, even where they do not divide
        # the groups.
        offset = rearrange(residual, "n h w (s pair yx) -> n h w s pair yx", s=len(flows), yx=2)
        offset = (offset + flow[..., None, ::-1]).reshape(*y.shape[:3], groups, 9, 2)
        mask = rearrange(jax.nn.sigmoid(y[..., 18 * groups :]), "n h w (g k) -> n h w g k", k=9)
        return deform_conv2d(x, offset, mask, weight, bias, kernels)


class ReorderedConv(nn.Module):
    """3x3 convolution that starts from zero and returns its output channels in another order.

    Attributes:
        order: Which channel of the parameters each output channel is.
        kernels: Implementation of `conv`.
        dtype: Compute dtype.
    """

    order: tuple[int, ...]
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w features"]:
        zeros, features = nn.initializers.zeros, len(self.order)
        kernel = self.param("kernel", zeros, (3, 3, x.shape[-1], features))
        bias = self.param("bias", zeros, (features,))
        order = np.array(self.order)
        y = conv(x.astype(self.dtype), kernel[..., order].astype(self.dtype), self.kernels)
        return y + bias[order].astype(self.dtype)


class ParallelWarping(nn.Module):
    """Warps neighbouring frames' features towards each frame, both directions in one batch.

    Attributes:
        dim: Channels.
        deformable_groups: As in `FlowGuidedDeformConv`.
        max_residue_magnitude: As in `FlowGuidedDeformConv`.
        kernels: As in `VRT`.
        dtype: Compute dtype.
    """

    dim: int
    deformable_groups: int
    max_residue_magnitude: float
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        backward: list[Float[Array, "b pairs h w 2"]],
        forward: list[Float[Array, "b pairs h w 2"]],
    ) -> Float[Array, "b t h w c"]:
        """Aligns and fuses; `backward[d]`, `forward[d]` are flows between frames d + 1 apart."""
        b, t = x.shape[:2]
        sources, flows = [], []
        for d, (next_flow, previous_flow) in enumerate(zip(backward, forward, strict=True)):
            # Frames d + 1 away; zero where the clip has ended.
            sources.append(join_directions(_delay(x[:, d + 1 :], -d), _delay(x[:, : t - d - 1], d)))
            flows.append(join_directions(_delay(next_flow, -d), _delay(previous_flow, d)))
        aligned = FlowGuidedDeformConv(
            self.dim,
            self.deformable_groups,
            self.max_residue_magnitude,
            self.kernels,
            self.dtype,
            name="pa_deform",
        )(sources, join_directions(x[:, :-1], x[:, 1:]), flows)
        from_next, from_previous = split_directions(aligned, b)
        x = jnp.concatenate([x, _delay(from_next, -1), _delay(from_previous, 1)], axis=-1)
        kernels = without_cudnn(self.kernels)
        return GatedMlp(3 * self.dim, self.dim, kernels, self.dtype, name="pa_fuse")(x)


def join_directions(
    first: Float[Array, "b t h w c"], second: Float[Array, "b t h w c"]
) -> Float[Array, "n h w c"]:
    """Joins both directions' frames in one batch, clip after clip.

    In this order devices that share the clips share the batch too, and move nothing.
    """
    return rearrange(jnp.stack([first, second], axis=1), "b two t h w c -> (b two t) h w c")


def split_directions(x: Float[Array, "n h w c"], clips: int) -> Float[Array, "two b t h w c"]:
    """Inverse of `join_directions`."""
    return rearrange(x, "(b two t) h w c -> two b t h w c", two=2, b=clips)
