"""VRT guided by spikes: the whole system."""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.alignment import SpikeAlignment
from vrtspike_jax.models.layers import FrameConv
from vrtspike_jax.models.spike import (
    ConcatFuse,
    SpikeEncoder3D,
    SpikeTemporalSA,
    TemporalCrossAttnFuse,
)
from vrtspike_jax.models.vrt import VRT
from vrtspike_jax.ops import resize_bilinear

FUSIONS = ("cross_attention", "concat")


class VRTWithSpike(nn.Module):
    """Deblurs a clip with the help of the spikes fired during each frame's exposure.

    Spikes are encoded at four scales and attend over time; after each of VRT's four encoder
    stages, cross-attention lets the frames query them, and the fused features feed the decoder
    and its skips. `spike_blocks`, `spike_attention`, `spike_input`, `spike_alignment`,
    `alignment_reach`, `fusion` and `time_slope` let it depart from this published model; their
    defaults do not.

    Attributes:
        vrt: The backbone; its first four `embed_dims` equal `channels_per_scale`.
        spike_bins: Time bins K of the voxel grids.
        channels_per_scale: Channels of the spike branch at scales 1, 1/2, 1/4, 1/8.
        temporal_strides: Of the encoder; fusion needs the default, which keeps every frame.
        spatial_strides: Of the encoder.
        tsa_heads: Heads of the spikes' temporal self attention.
        tsa_dropout: Dropout rate of its weights.
        tsa_mlp_ratio: Width of its feed-forward layers over the channels.
        fuse_heads: Heads of the fusion's cross-attention.
        fuse_dropout: Dropout rate of its weights.
        fuse_mlp_ratio: Width of its feed-forward layers over the channels.
        time_slope: Start of the learned slope by which attention over time, in the spike branch
            and in the fusion, falls with distance; as in `TemporalAttention`. 0 as published.
        max_batch_tokens: Pixels (times batch) in one chunk of temporal attention; None for all.
        spike_blocks: Residual blocks of the encoder at each scale.
        spike_attention: Whether spikes attend over time; if not, fusion takes the encoder's
            features as they are.
        spike_input: Whether the voxels, resized to the frames, also enter the backbone's first
            convolution, so that it sees them at full detail from the start.
        spike_alignment: Whether voxels are joined, along the bins, by the same ones warped to the
            middle of the exposure along an estimated motion (`SpikeAlignment`).
        alignment_reach: Bins of the frame before and of the one after that are warped as well.
        fusion: "cross_attention", or "concat": at each pixel and frame alone, a linear map of
            both features, joined along the channels.
    """

    vrt: VRT
    spike_bins: int = 32
    channels_per_scale: Sequence[int] = (96,) * 4
    temporal_strides: Sequence[int] = (1, 1, 1)
    spatial_strides: Sequence[int] = (2, 2, 2)
    tsa_heads: int = 4
    tsa_dropout: float = 0.0
    tsa_mlp_ratio: float = 2.0
    fuse_heads: int = 4
    fuse_dropout: float = 0.0
    fuse_mlp_ratio: float = 2.0
    time_slope: float = 0.0
    max_batch_tokens: int | None = None
    spike_blocks: int = 2
    spike_attention: bool = True
    spike_input: bool = False
    spike_alignment: bool = False
    alignment_reach: int = 0
    fusion: str = "cross_attention"

    def setup(self) -> None:
        dtype, kernels = self.vrt.dtype, self.vrt.kernels
        if self.spike_alignment:
            self.spike_aligner = SpikeAlignment(self.alignment_reach, dtype=dtype)
        self.spike_encoder = SpikeEncoder3D(
            self.channels_per_scale,
            self.temporal_strides,
            self.spatial_strides,
            self.spike_blocks,
            dtype,
        )
        if self.spike_attention:
            self.spike_temporal_sa = SpikeTemporalSA(
                self.tsa_heads,
                self.tsa_dropout,
                self.tsa_mlp_ratio,
                self.time_slope,
                self.max_batch_tokens,
                kernels,
                dtype,
            )
        if self.spike_input:
            # Added to conv_first's output, which equals one convolution of both inputs, joined
            # along the channels, and leaves the backbone's parameters as published.
            self.spike_first = FrameConv(self.vrt.embed_dims[0], dtype)
        fields = (
            len(self.channels_per_scale),
            self.fuse_heads,
            self.fuse_dropout,
            self.fuse_mlp_ratio,
            self.time_slope,
            self.max_batch_tokens,
            kernels,
            dtype,
        )
        if self.fusion == "concat":
            self.concat_fuse = ConcatFuse(*fields)
        elif self.fusion == "cross_attention":
            self.cross_attn_fuse = TemporalCrossAttnFuse(*fields)
        else:
            raise ValueError(
                f"VRTWithSpike: fusion is {self.fusion!r}; want one of {', '.join(FUSIONS)}"
            )

    def _at_frames_size(self, frames: Array, voxels: Array) -> Float[Array, "b t h w k"]:
        b, (h, w) = frames.shape[0], frames.shape[2:4]
        voxels = resize_bilinear(rearrange(voxels, "b t h w k -> (b t) h w k"), h, w)
        return rearrange(voxels, "(b t) h w k -> b t h w k", b=b)

    def _check(self, frames: Array, voxels: Array) -> None:
        if len(self.channels_per_scale) != 4 or tuple(self.channels_per_scale) != tuple(
            self.vrt.embed_dims[:4]
        ):
            raise ValueError(
                f"VRTWithSpike: channels_per_scale is {self.channels_per_scale}, want the "
                f"backbone's first four embed_dims, {self.vrt.embed_dims[:4]}"
            )
        want = f"({frames.shape[0]}, {frames.shape[1]}, H, W, {self.spike_bins})"
        if voxels.ndim != 5 or voxels.shape[:2] != frames.shape[:2]:
            raise ValueError(f"VRTWithSpike: spike voxels have shape {voxels.shape}, want {want}")
        if voxels.shape[-1] != self.spike_bins or any(s != 1 for s in self.temporal_strides):
            raise ValueError(
                f"VRTWithSpike: spike voxels have shape {voxels.shape}, temporal strides are "
                f"{self.temporal_strides}; want {want} and strides of 1"
            )

    def __call__(
        self,
        frames: Float[Array, "b t h w c"],
        spike_voxels: Float[Array, "b t hs ws k"],
        train: bool = False,
        return_intermediates: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Restores a clip.

        Args:
            frames: Blurred RGB in [0, 1], as `VRT` takes it.
            spike_voxels: Voxel grids of each frame's exposure, at any resolution.
            train: Turns dropout and stochastic depth on, which needs a "dropout" RNG.
            return_intermediates: Also returns a dict of intermediate values.

        Returns:
            Restored frames (B, T, H, W, 3) in float32, without clipping. The dict holds VRT's
            intermediates (stages before fusion) and, for each scale i from 1 to 4,
            `spike_features{i}`, `spike_temporal{i}` (the same without `spike_attention`) and
            `fused{i}`.

        Raises:
            ValueError: for fields or sizes that the model cannot take.
        """
        self._check(frames, spike_voxels)
        if self.spike_alignment:
            aligned = self.spike_aligner(spike_voxels)
            spike_voxels = jnp.concatenate([spike_voxels, aligned], axis=-1)
        features = self.spike_encoder(spike_voxels)
        temporal = self.spike_temporal_sa(features, train) if self.spike_attention else features
        guide = None
        if self.spike_input:
            guide = self.spike_first(self._at_frames_size(frames, spike_voxels))
        merge = self.concat_fuse if self.fusion == "concat" else self.cross_attn_fuse
        fused = []

        def fuse(i: int, x: Array) -> Array:
            fused.append(merge(i, x, temporal[i], train))
            return fused[-1]

        out, seen = self.vrt(frames, train, return_intermediates=True, fuse=fuse, guide=guide)
        if not return_intermediates:
            return out
        for name, values in (
            ("spike_features", features),
            ("spike_temporal", temporal),
            ("fused", fused),
        ):
            seen |= {f"{name}{i}": value for i, value in enumerate(values, 1)}
        return out, seen
