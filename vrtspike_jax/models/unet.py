"""U-Nets for frames and their spikes: the small model, and a plain one to compare with."""

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
FULL, HALF, EIGHTH = 0, 1, 3  # scales: 2**-scale of the size


class UNet(nn.Module):
    """What U-Nets have in common: they find what to add to the blurred frames.

    Subclasses have `channels` at scales 1, 1/2, 1/4 and 1/8, and say what `_features` are.

    Attributes:
        spike_bins: Time bins K of the voxel grids.
        gated: Whether residual blocks are gated; see `ResidualBlock`.
        remat: What the backward pass recomputes: "none", or "block" (every residual block).
        kernels: As in `VRT`; without effect, as convolutions are XLA's.
        dtype: Compute dtype; parameters are float32.
    """

    spike_bins: int = 88
    gated: bool = False
    remat: str = "none"
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    # What restoration asks every model: it keeps the size, and takes a clip of any length.
    upscale = 1
    pa_frames = 0

    def _features(
        self, blurred: Float[Array, "n h w 3"], voxels: Float[Array, "n hs ws k"], clip: int
    ) -> Float[Array, "n h w c"]:
        """Features of the restored frames; those of a clip of `clip` frames follow each other."""
        raise NotImplementedError

    def _check(self, frames: Array, voxels: Array) -> None:
        name = type(self).__name__
        dispatch.check(name, self.kernels)
        if self.remat not in REMATS or len(self.channels) != 4:
            raise ValueError(
                f"{name}: remat is {self.remat!r}, channels {self.channels}; want one of "
                f"{', '.join(REMATS)}, and channels of 4 scales"
            )
        if frames.ndim != 5 or frames.shape[-1] != 3 or any(s % 8 for s in frames.shape[2:4]):
            raise ValueError(
                f"{name}: frames have shape {frames.shape}, want (B, T, H, W, 3) with H and W "
                "multiples of 8"
            )
        wanted = (*frames.shape[:2], self.spike_bins)
        if voxels.ndim != 5 or voxels.shape[:2] + voxels.shape[4:] != wanted:
            want = f"({wanted[0]}, {wanted[1]}, H, W, {self.spike_bins})"
            raise ValueError(f"{name}: spike voxels have shape {voxels.shape}, want {want}")

    def _conv(self, features: int, name: str, stride: int = 1, **settings) -> nn.Module:
        shape = {"kernel_size": (3, 3), "strides": stride, "padding": 1}
        return Conv(features, **shape, dtype=self.dtype, name=name, **settings)

    def _blocks(self, x: Array, scale: int, count: int, name: str, clip: int = 0) -> Array:
        """Residual blocks; with `clip`, they see the neighbouring frames."""
        block = nn.remat(ResidualBlock) if self.remat == "block" else ResidualBlock
        size = self.channels[scale]
        for i in range(count):
            x = block(size, self.dtype, clip, self.gated, name=f"{name}{scale}_{i}")(x)
        return x

    def _grow(self, x: Array, skip: Array, scale: int) -> Array:
        """To the next finer scale, that of the encoder's features `skip`, which are added."""
        n, h, w, c = skip.shape
        x = jax.image.resize(x, (n, h, w, x.shape[-1]), "nearest")
        return self._conv(c, f"up{scale}")(x) + skip

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
        clip = frames.shape[1]
        blurred = rearrange(frames, "b t h w c -> (b t) h w c").astype(jnp.float32)
        x = self._features(blurred, rearrange(spike_voxels, "b t h w k -> (b t) h w k"), clip)
        # Zeros: an untrained network returns its input, and training starts from there.
        last = self._conv(3, "last", kernel_init=nn.initializers.zeros)
        restored = blurred + last(x).astype(jnp.float32)
        return rearrange(restored, "(b t) h w c -> b t h w c", t=clip)


class ShiftUNet(UNet):
    """Deblurs a clip with one encoder for frames and spikes.

    Spikes have half the frames' resolution as a rule, so that is where they meet the frames, whose
    2 x 2 pixels lie side by side in the channels (pixel unshuffle), and where most of the work is
    done; spikes of another size are resized to it. The decoder returns to the full size by pixel
    shuffle. At the coarse scales, where motion is a matter of few pixels, blocks also see the
    frames before and after (`shift_frames`).

    Attributes:
        channels: Channels at scales 1, 1/2, 1/4 and 1/8.
        encoder_blocks: Residual blocks of the encoder at scales 1/2, 1/4 and 1/8.
        decoder_blocks: Residual blocks of the decoder at scales 1, 1/2 and 1/4.
        shift_scale: First scale (1 for 1/2, 2 for 1/4, 3 for 1/8) whose blocks see neighbouring
            frames, with all coarser ones; 4 for none.
        (others): as in `UNet`.
    """

    channels: Sequence[int] = (32, 128, 128, 128)
    encoder_blocks: Sequence[int] = (3, 1, 2)
    decoder_blocks: Sequence[int] = (2, 3, 1)
    shift_scale: int = 2

    def _check(self, frames: Array, voxels: Array) -> None:
        super()._check(frames, voxels)
        if len(self.encoder_blocks) != 3 or len(self.decoder_blocks) != 3:
            raise ValueError(
                f"ShiftUNet: blocks are {self.encoder_blocks} and {self.decoder_blocks}, want "
                "those of 3 scales each"
            )

    def _features(self, blurred: Array, voxels: Array, clip: int) -> Array:
        unshuffled = rearrange(blurred, "n (h p) (w q) c -> n h w (p q c)", p=2, q=2)
        voxels = resize_bilinear(voxels, *unshuffled.shape[1:3])
        x = jnp.concatenate([unshuffled.astype(self.dtype), voxels.astype(self.dtype)], axis=-1)
        clips = [clip if scale >= self.shift_scale else 0 for scale in range(EIGHTH + 1)]
        skips = [self._conv(self.channels[FULL], "first")(blurred)]
        for scale in range(HALF, EIGHTH + 1):
            stride = 1 if scale == HALF else 2
            x = self._conv(self.channels[scale], f"enter{scale}", stride)(x)
            x = self._blocks(x, scale, self.encoder_blocks[scale - 1], "encoder", clips[scale])
            skips.append(x)
        for scale in range(EIGHTH - 1, FULL, -1):
            x = self._grow(x, skips[scale], scale)
            x = self._blocks(x, scale, self.decoder_blocks[scale], "decoder", clips[scale])
        x = self._conv(4 * self.channels[FULL], "up0")(x)
        x = rearrange(x, "n h w (p q c) -> n (h p) (w q) c", p=2, q=2) + skips[FULL]
        return self._blocks(x, FULL, self.decoder_blocks[FULL], "decoder", clips[FULL])


class UNetSpike(UNet):
    """Deblurs frames one by one, each with the spikes fired during its exposure.

    Frames and spikes, resized to the frames, have an encoder each; at every scale the spikes'
    features join the frames'. The decoder adds the skips.

    Attributes:
        channels: Channels at scales 1, 1/2, 1/4 and 1/8.
        blocks: Residual blocks at each scale of each encoder and of the decoder.
        (others): as in `UNet`.
    """

    channels: Sequence[int] = (32, 64, 128, 256)
    blocks: int = 1

    def _encode(self, x: Float[Array, "n h w c"], name: str) -> list[Float[Array, "n h w c"]]:
        features = []
        for scale, channels in enumerate(self.channels):
            x = self._conv(channels, f"{name}_enter{scale}", 2 if scale else 1)(x)
            x = self._blocks(x, scale, self.blocks, f"{name}_block")
            features.append(x)
        return features

    def _features(self, blurred: Array, voxels: Array, clip: int) -> Array:
        del clip
        voxels = resize_bilinear(voxels, *blurred.shape[1:3])
        merged = [
            Dense(x.shape[-1], dtype=self.dtype, name=f"merge{scale}")(jnp.concatenate([x, y], -1))
            for scale, (x, y) in enumerate(
                zip(self._encode(blurred, "frame"), self._encode(voxels, "spike"), strict=True)
            )
        ]
        x = merged[-1]
        for scale in range(EIGHTH - 1, FULL - 1, -1):
            x = self._grow(x, merged[scale], scale)
            x = self._blocks(x, scale, self.blocks, "decoder_block")
        return x
