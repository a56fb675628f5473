"""A plain U-Net that restores each frame from its own pixels and spikes: what to compare with."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv, Dense
from vrtspike_jax.models.residual import ResidualBlock
from vrtspike_jax.ops import dispatch, resize_bilinear

REMATS = ("none", "block")


def check_clip(model: str, frames: Array, voxels: Array, bins: int) -> None:
    """Checks what a U-Net is given.

    Args:
        model: Its name, for messages.
        frames: (B, T, H, W, 3) with H and W multiples of 8.
        voxels: (B, T, Hs, Ws, bins).
        bins: Time bins of the voxel grids.

    Raises:
        ValueError: other shapes.
    """
    if frames.ndim != 5 or frames.shape[-1] != 3 or any(s % 8 for s in frames.shape[2:4]):
        raise ValueError(
            f"{model}: frames have shape {frames.shape}, want (B, T, H, W, 3) with H and W "
            "multiples of 8"
        )
    if voxels.ndim != 5 or voxels.shape[:2] + voxels.shape[4:] != (*frames.shape[:2], bins):
        want = f"({frames.shape[0]}, {frames.shape[1]}, H, W, {bins})"
        raise ValueError(f"{model}: spike voxels have shape {voxels.shape}, want {want}")


class UNetSpike(nn.Module):
    """Deblurs frames one by one, each with the spikes fired during its exposure.

    Frames and spikes have an encoder each; at every scale the spikes' features join the frames'.
    The decoder adds the skips, and the result is added to the blurred frame.

    Attributes:
        spike_bins: Time bins K of the voxel grids.
        channels: Channels at scales 1, 1/2, 1/4 and 1/8.
        blocks: Residual blocks at each scale of each encoder and of the decoder.
        remat: What the backward pass recomputes: "none", or "block" (every residual block).
        kernels: As in `VRT`; without effect, as convolutions are XLA's.
        dtype: Compute dtype; parameters are float32.
    """

    spike_bins: int = 32
    channels: Sequence[int] = (32, 64, 128, 256)
    blocks: int = 1
    remat: str = "none"
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    # What restoration asks every model: it keeps the size, and needs no neighbouring frames.
    upscale = 1
    pa_frames = 0

    def _check(self, frames: Array, voxels: Array) -> None:
        dispatch.check("UNetSpike", self.kernels)
        if self.remat not in REMATS or len(self.channels) != 4:
            raise ValueError(
                f"UNetSpike: remat is {self.remat!r}, channels {self.channels}; want one of "
                f"{', '.join(REMATS)}, and channels of 4 scales"
            )
        check_clip("UNetSpike", frames, voxels, self.spike_bins)

    def _blocks(self, x: Array, scale: int, name: str) -> Array:
        block = nn.remat(ResidualBlock) if self.remat == "block" else ResidualBlock
        for i in range(self.blocks):
            x = block(self.channels[scale], self.dtype, name=f"{name}{scale}_{i}")(x)
        return x

    def _encode(self, x: Float[Array, "n h w c"], name: str) -> list[Float[Array, "n h w c"]]:
        features = []
        for scale, channels in enumerate(self.channels):
            stride = 2 if scale else 1
            enter = Conv(
                channels,
                (3, 3),
                strides=stride,
                padding=1,
                dtype=self.dtype,
                name=f"{name}_enter{scale}",
            )
            x = self._blocks(enter(x), scale, f"{name}_block")
            features.append(x)
        return features

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "b t h w 3"],
        spike_voxels: Float[Array, "b t hs ws k"],
        train: bool = False,
    ) -> Float[Array, "b t h w 3"]:
        """Restores a clip.

        Args:
            frames: Blurred RGB in [0, 1]; height and width are multiples of 8.
            spike_voxels: Voxel grids of each frame's exposure, at any resolution.
            train: Without effect: there is no dropout.

        Returns:
            Restored frames in float32, without clipping.

        Raises:
            ValueError: for fields or sizes that the model cannot take.
        """
        del train
        self._check(frames, spike_voxels)
        clips, (h, w) = frames.shape[0], frames.shape[2:4]
        blurred = rearrange(frames, "b t h w c -> (b t) h w c").astype(jnp.float32)
        voxels = rearrange(spike_voxels, "b t h w k -> (b t) h w k")
        voxels = resize_bilinear(voxels, h, w)
        merged = [
            Dense(x.shape[-1], dtype=self.dtype, name=f"merge{scale}")(jnp.concatenate([x, y], -1))
            for scale, (x, y) in enumerate(
                zip(self._encode(blurred, "frame"), self._encode(voxels, "spike"), strict=True)
            )
        ]
        x = merged[-1]
        for scale in (2, 1, 0):
            n, h, w, c = merged[scale].shape
            x = jax.image.resize(x, (n, h, w, x.shape[-1]), "nearest")
            x = Conv(c, (3, 3), dtype=self.dtype, name=f"up{scale}")(x) + merged[scale]
            x = self._blocks(x, scale, "decoder_block")
        # Zeros: an untrained network returns its input, and training starts from there.
        last = Conv(3, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="last")
        restored = blurred + last(x).astype(jnp.float32)
        return rearrange(restored, "(b t) h w c -> b t h w c", b=clips)
