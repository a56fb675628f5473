"""VRT, the Video Restoration Transformer (Liang et al., 2022, arXiv:2201.12288)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.attention import REMATS
from vrtspike_jax.models.layers import Conv, Dense, FrameConv, LayerNorm
from vrtspike_jax.models.residual import ResidualGroup
from vrtspike_jax.models.spynet import SpyNet
from vrtspike_jax.models.stages import RTMSA, ConvStage, Stage, Upsample, mutual_blocks
from vrtspike_jax.models.warping import (
    align_frames,
    compose_flows,
    join_directions,
    split_directions,
)
from vrtspike_jax.ops import resize_bilinear
from vrtspike_jax.ops.dispatch import without_cudnn

# Scale (as a power of two) and reshaping of stages 1 to 7: an hourglass.
STAGES = ((0, "none"), (1, "down"), (2, "down"), (3, "down"), (2, "up"), (1, "up"), (0, "up"))
UPSAMPLE_FEATURES = 64
FLOWS = ("spynet", "none")


class VRT(nn.Module):
    """Restores a clip of blurred, noisy or small frames; fields as published.

    Attributes:
        upscale: Factor of super-resolution; 1 restores at the input's size.
        in_chans: Channels of the input frames.
        out_chans: Channels of the output frames.
        img_size: Clip size (T, H, W); T matters only where `pa_frames` is 0.
        window_size: Attention window (T, H, W).
        depths: Blocks of stages 1 to 7 and of each group in stage 8.
        indep_reconsts: Groups (counted over all of `depths`) that treat frames one by one.
        embed_dims: Channels of the same.
        num_heads: Heads of the same.
        mul_attn_ratio: Share of blocks with mutual attention in stages 1 to 7.
        mlp_ratio: Width of the feed-forward layers over the channels.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor of the attention logits; None means head_dim ** -0.5.
        drop_path_rate: Largest stochastic depth rate, reached at the last block.
        pa_frames: Neighbours in parallel warping: 2, 4, 6, or 0 for frame interpolation.
        deformable_groups: Groups of channels with offsets of their own.
        nonblind_denoising: Whether a noise level map follows the frames' channels.
        optical_flow: "spynet", as published, or "none": neighbours are taken as they lie, and
            what moves is left to the offsets that the deformable convolutions learn.
        conv_scales: At how many scales, from the full size on, stages are residual convolutions of
            each frame instead of attention and warping; `depths` then counts those. 0 as published.
            Attention costs most, and sees least, where the map is largest.
        remat: What the backward pass recomputes: "none", "light", "attn", "ffn" or "block", as in
            `TMSA`.
        unroll: Whether pairs of blocks are compiled one by one instead of once, in a loop: faster
            steps, longer compilation, the same results and parameters.
        kernels: Implementation of the fused operations: "auto" (kernels on CUDA GPUs), "xla",
            "pallas", "cudnn" (of attention alone) or "interpret".
        dtype: Compute dtype; parameters, flow and softmax are float32.
    """

    upscale: int = 4
    in_chans: int = 3
    out_chans: int = 3
    img_size: Sequence[int] = (6, 64, 64)
    window_size: Sequence[int] = (6, 8, 8)
    depths: Sequence[int] = (8,) * 7 + (4,) * 6
    indep_reconsts: Sequence[int] = (11, 12)
    embed_dims: Sequence[int] = (120,) * 7 + (180,) * 6
    num_heads: Sequence[int] = (6,) * 13
    mul_attn_ratio: float = 0.75
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_path_rate: float = 0.2
    pa_frames: int = 2
    deformable_groups: int = 16
    nonblind_denoising: bool = False
    optical_flow: str = "spynet"
    conv_scales: int = 0
    remat: str = "none"
    unroll: bool = False
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def _check(self, frames: Array) -> None:
        groups = len(self.depths)
        if not groups == len(self.embed_dims) == len(self.num_heads) or groups < 8:
            raise ValueError(
                f"VRT: depths, embed_dims and num_heads have {groups}, {len(self.embed_dims)} and "
                f"{len(self.num_heads)} entries, want the same number, at least 8"
            )
        if self.pa_frames not in (0, 2, 4, 6) or self.remat not in REMATS:
            raise ValueError(
                f"VRT: pa_frames is {self.pa_frames}, remat {self.remat!r}; want 0, 2, 4 or 6 and "
                f"one of {REMATS}"
            )
        if self.optical_flow not in FLOWS or not 0 <= self.conv_scales <= 3:
            raise ValueError(
                f"VRT: optical_flow is {self.optical_flow!r}, conv_scales {self.conv_scales}; want "
                f"one of {', '.join(FLOWS)}, and 0 to 3"
            )
        channels = self.in_chans + (self.nonblind_denoising and self.pa_frames > 0)
        if frames.ndim != 5 or frames.shape[-1] != channels:
            raise ValueError(
                f"VRT: frames have shape {frames.shape}, want (B, T, H, W, {channels})"
            )
        t, h, w = frames.shape[1:4]
        least_t, least_h, least_w = self.smallest_clip()
        if t < least_t or h < least_h or w < least_w or h % 8 or w % 8:
            raise ValueError(
                f"VRT: clip is {t} x {h} x {w}; want at least {least_t} frames, and height and "
                f"width that are multiples of 8, at least {least_h} x {least_w}"
            )
        if not self.pa_frames and t != self.img_size[0]:
            raise ValueError(f"VRT: clip has {t} frames; want img_size[0], {self.img_size[0]}")

    def smallest_clip(self) -> tuple[int, int, int]:
        """Least T, H, W: mutual attention needs 2 frames and, at its scale, a whole window."""
        scales = [
            2**scale
            for depth, (scale, _) in zip(self.depths, STAGES, strict=False)
            if mutual_blocks(depth, self.mul_attn_ratio) and scale >= self.conv_scales
        ]
        largest = max(scales, default=0)
        frames = self.pa_frames // 2 + 1 if self.pa_frames > 2 else 1
        _, height, width = self.window_size
        return max(frames, 2 if scales else 1), max(8, largest * height), max(8, largest * width)

    def _block(self, i: int) -> dict:
        """Fields of the blocks in stage or group `i`."""
        return {
            "dim": self.embed_dims[i],
            "num_heads": self.num_heads[i],
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "qk_scale": self.qk_scale,
            "remat": self.remat,
            "kernels": self.kernels,
            "dtype": self.dtype,
        }

    def _drop_rates(self) -> list[np.ndarray]:
        """Stochastic depth rates of each stage's or group's blocks; they rise with depth.

        As published, both groups of a stage start at its first rate.
        """
        rates = np.split(
            np.linspace(0, self.drop_path_rate, sum(self.depths)), np.cumsum(self.depths)[:-1]
        )
        mutual = [mutual_blocks(depth, self.mul_attn_ratio) for depth in self.depths[:7]]
        stages = [
            np.concatenate([r[:n], r[: len(r) - n]]) for r, n in zip(rates, mutual, strict=False)
        ]
        return stages + rates[7:]

    def _branch_scales(self, samples: int, train: bool) -> list[Array | None]:
        """Stochastic depth: factors (depth, 2, B) of the branches of each stage's or group's
        blocks, 0 at the block's rate and 1 on average; None where nothing is dropped."""
        if not train or not self.drop_path_rate:
            return [None] * len(self.depths)
        keep = 1 - np.concatenate(self._drop_rates())[:, None, None].astype(np.float32)
        # All at once: numbers drawn block by block were half of the program to compile.
        key = self.make_rng("dropout")
        kept = jax.random.bernoulli(key, keep, (len(keep), 2, samples))
        return jnp.split(kept / keep, np.cumsum(self.depths)[:-1])

    def _flows(self, frames: Float[Array, "b t h w c"]) -> tuple[list, list]:
        """Backward and forward flows, indexed [distance - 1][scale]."""
        b, t, h, w, _ = frames.shape
        distance = self.pa_frames // 2
        if self.optical_flow == "none":
            still = [
                [jnp.zeros((b, t - step, h >> scale, w >> scale, 2)) for scale in range(4)]
                for step in range(1, distance + 1)
            ]
            return still, still
        first, second = frames[:, :-1], frames[:, 1:]
        # A model in float32 multiplies float32 here, too.
        half = self.dtype != jnp.float32
        flows = SpyNet(without_cudnn(self.kernels) if half else "xla", name="spynet")(
            join_directions(first, second), join_directions(second, first)
        )
        flows = [split_directions(flow, b) for flow in flows]
        backward = compose_flows([[f[0] for f in flows]], distance, backward=True)
        forward = compose_flows([[f[1] for f in flows]], distance, backward=False)
        return backward, forward

    def _stage(self, i: int) -> Stage | ConvStage:
        scale, reshape = STAGES[i]
        if scale < self.conv_scales:
            fields = self.embed_dims[i], self.depths[i], reshape, self.remat != "none", self.dtype
            return ConvStage(*fields, name=f"stage{i + 1}")
        return Stage(
            dim=self.embed_dims[i],
            depth=self.depths[i],
            mul_attn_ratio=self.mul_attn_ratio,
            window_size=tuple(self.window_size),
            block=self._block(i),
            reshape=reshape,
            pa_frames=self.pa_frames,
            deformable_groups=self.deformable_groups,
            max_residue_magnitude=10 / 2**scale,
            unroll=self.unroll,
            kernels=self.kernels,
            dtype=self.dtype,
            name=f"stage{i + 1}",
        )

    def _hourglass(
        self, x: Array, flows: tuple[list, list], fuse: Callable, scales: list, seen: dict
    ) -> Array:
        """Stages 1 to 7 with skips; `fuse(i, x)` follows each of the first four."""
        skips = []
        for i, (scale, _) in enumerate(STAGES):
            if i >= 5:
                x = x + skips[STAGES[i - 1][0]]
            x = self._stage(i)(x, *([f[scale] for f in way] for way in flows), scales[i])
            seen[f"stage{i + 1}"] = x
            if i < 4:
                x = fuse(i, x)
                skips.append(x)
        return x + skips[0]

    def _reconstruct(self, x: Float[Array, "b t h w c"], scales: list) -> Array:
        """Stage 8 and the projection back to the first features' channels."""
        x = LayerNorm(dtype=self.dtype, name="stage8_0_1")(x)
        x = Dense(self.embed_dims[7], dtype=self.dtype, name="stage8_0_2")(x)
        for i in range(7, len(self.depths)):
            if self.conv_scales:
                fields = self.embed_dims[i], self.depths[i], self.remat != "none", self.dtype
                x = ResidualGroup(*fields, name=f"stage8_{i - 6}")(x)
                continue
            block = self._block(i) | {"mut_attn": False}
            alone = i in self.indep_reconsts
            block["window_size"] = (1 if alone else self.window_size[0], *self.window_size[1:])
            fields = self.embed_dims[i], self.depths[i], block, self.unroll, self.dtype
            x = RTMSA(*fields, name=f"stage8_{i - 6}")(x, scales[i])
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return Dense(self.embed_dims[0], dtype=self.dtype, name="conv_after_body")(x)

    def _enlarge(self, x: Array, frames: Array) -> tuple[Array, Array]:
        """Features and input frames at `upscale` times the size."""
        if self.upscale == 1:
            return x, frames
        x = FrameConv(UPSAMPLE_FEATURES, self.dtype, name="conv_before_upsample_0")(x)
        x = Upsample(self.upscale, UPSAMPLE_FEATURES, self.dtype, name="upsample")(
            nn.leaky_relu(x, 0.01)
        )
        b, (h, w) = frames.shape[0], x.shape[2:4]
        if self.out_chans != self.in_chans:  # Published behaviour: channels are resized as well.
            frames = rearrange(frames, "b t h w c -> (b t h) w c 1")
            frames = resize_bilinear(frames, frames.shape[1], self.out_chans)
            frames = rearrange(frames, "(b t h) w c 1 -> b t h w c", b=b, t=x.shape[1])
        frames = resize_bilinear(rearrange(frames, "b t h w c -> (b t) h w c"), h, w)
        return x, rearrange(frames, "(b t) h w c -> b t h w c", b=b)

    def _interpolate(self, x: Array, mean: Array) -> Array:
        """Head of frame interpolation: all frames' features give `out_chans` channels."""
        x = rearrange(x, "b t h w c -> b h w (t c)")
        x = Conv(UPSAMPLE_FEATURES, (1, 1), dtype=self.dtype, name="linear_fuse")(x)
        x = jnp.pad(nn.leaky_relu(x, 0.2), [(0, 0), (3, 3), (3, 3), (0, 0)], mode="reflect")
        x = Conv(self.out_chans, (7, 7), padding="VALID", dtype=self.dtype, name="conv_last")(x)
        return rearrange(x, "b h w (t c) -> b t h w c", c=3).astype(jnp.float32) + mean

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "b t h w c"],
        train: bool = False,
        return_intermediates: bool = False,
        fuse: Callable[[int, Array], Array] | None = None,
        guide: Float[Array, "b t h w d"] | None = None,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Restores a clip.

        Args:
            frames: RGB in [0, 1]; with `nonblind_denoising` followed by a noise level channel.
                Height and width are multiples of 8; where stage 4 has mutual attention, at least
                8 windows.
            train: Turns stochastic depth on, which needs a "dropout" RNG.
            return_intermediates: Also returns the values below.
            fuse: Called as `fuse(i, features)` after encoder stage i + 1; what it returns takes
                the place of the features, in the next stage and in the skip.
            guide: Added to the first features, of embed_dims[0] channels.

        Returns:
            Restored frames in float32, (B, T, upscale * H, upscale * W, out_chans); without
            clipping. With `return_intermediates`, also a dict of `flows_backward`,
            `flows_forward` (indexed [distance - 1][scale]) and `stage1` to `stage7`.

        Raises:
            ValueError: for fields or a clip size that the model cannot take.
        """
        self._check(frames)
        fuse = fuse or (lambda i, x: x)
        seen = {}
        frames, noise_map = jnp.split(frames.astype(jnp.float32), [self.in_chans], axis=-1)
        x, flows = frames, ([], [])
        if self.pa_frames:
            flows = self._flows(frames)
            seen["flows_backward"], seen["flows_forward"] = flows
            x = jnp.concatenate([x, align_frames(x, flows[0][0][0], flows[1][0][0]), noise_map], -1)
        else:
            mean = frames.mean(axis=(1, 2, 3), keepdims=True)
            x = x - mean
        x = FrameConv(self.embed_dims[0], self.dtype, name="conv_first")(x)
        x = x if guide is None else x + guide
        scales = self._branch_scales(frames.shape[0], train)
        body = self._hourglass(x, flows, fuse, scales, seen)
        x = x + self._reconstruct(body, scales)
        if self.pa_frames:
            x, frames = self._enlarge(x, frames)
            # Zeros: an untrained network returns its input, and training starts from there.
            zeros = nn.initializers.zeros
            x = FrameConv(self.out_chans, self.dtype, kernel_init=zeros, name="conv_last")(x)
            out = x.astype(jnp.float32) + frames
        else:
            out = self._interpolate(x, mean)
        return (out, seen) if return_intermediates else out
