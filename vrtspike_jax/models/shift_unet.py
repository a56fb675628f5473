"""A U-Net that works at half the size, on frames and spikes together: the small model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv
from vrtspike_jax.models.residual import ResidualBlock
from vrtspike_jax.models.unet import REMATS, check_clip
from vrtspike_jax.ops import dispatch, resize_bilinear

FULL, HALF, EIGHTH = 0, 1, 3  # scales: 2**-scale of the size


class ShiftUNet(nn.Module):
    """Deblurs a clip with one encoder for frames and spikes.

    Spikes have half the frames' resolution as a rule, so that is where they meet the frames, whose
    2 x 2 pixels lie side by side in the channels (pixel unshuffle), and where most of the work is
    done. The decoder returns to the full size by pixel shuffle; what it finds is added to the
    blurred frame. At the coarse scales, where motion is a matter of few pixels, blocks also see
    the frames before and after (`shift_frames`).

    Attributes:
        spike_bins: Time bins K of the voxel grids.
        channels: Channels at scales 1, 1/2, 1/4 and 1/8.
        encoder_blocks: Residual blocks of the encoder at scales 1/2, 1/4 and 1/8.
        decoder_blocks: Residual blocks of the decoder at scales 1, 1/2 and 1/4.
        shift_scale: First scale (1 for 1/2, 2 for 1/4, 3 for 1/8) whose blocks see neighbouring
            frames, with all coarser ones; 4 for none.
        remat: What the backward pass recomputes: "none", or "block" (every residual block).
        kernels: As in `VRT`; without effect, as convolutions are XLA's.
        dtype: Compute dtype; parameters are float32.
    """

    spike_bins: int = 88
    channels: Sequence[int] = (32, 128, 128, 128)
    encoder_blocks: Sequence[int] = (3, 1, 2)
    decoder_blocks: Sequence[int] = (2, 3, 1)
    shift_scale: int = 2
    remat: str = "none"
    kernels: str = "auto"
    dtype: jnp.dtype = jnp.float32

    # What restoration asks every model: it keeps the size, and takes a clip of any length.
    upscale = 1
    pa_frames = 0

    def _check(self, frames: Array, voxels: Array) -> None:
        dispatch.check("ShiftUNet", self.kernels)
        lengths = (len(self.channels), len(self.encoder_blocks), len(self.decoder_blocks))
        if self.remat not in REMATS or lengths != (4, 3, 3):
            raise ValueError(
                f"ShiftUNet: remat is {self.remat!r}, channels {self.channels}, blocks "
                f"{self.encoder_blocks} and {self.decoder_blocks}; want one of "
                f"{', '.join(REMATS)}, and channels of 4, blocks of 3 scales"
            )
        check_clip("ShiftUNet", frames, voxels, self.spike_bins)

    def _conv(self, features: int, name: str, stride: int = 1, **settings) -> nn.Module:
        return Conv(
            features,
            (3, 3),
            strides=stride,
            padding=1,
            dtype=self.dtype,
            name=name,
            **settings,
        )

    def _blocks(self, x: Array, scale: int, count: int, clip: int, name: str) -> Array:
        block = nn.remat(ResidualBlock) if self.remat == "block" else ResidualBlock
        clip = clip if scale >= self.shift_scale else 0
        for i in range(count):
            x = block(self.channels[scale], self.dtype, clip, name=f"{name}{scale}_{i}")(x)
        return x

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
            spike_voxels: Voxel grids of each frame's exposure, best at half the frames' size;
                others are resized to it.
            train: Without effect: there is no dropout.

        Returns:
            Restored frames in float32, without clipping.

        Raises:
            ValueError: for fields or sizes that the model cannot take.
        """
        del train
        self._check(frames, spike_voxels)
        clip, (h, w) = frames.shape[1], frames.shape[2:4]
        blurred = rearrange(frames, "b t h w c -> (b t) h w c").astype(jnp.float32)
        voxels = rearrange(spike_voxels, "b t h w k -> (b t) h w k")
        voxels = resize_bilinear(voxels, h // 2, w // 2)
        unshuffled = rearrange(blurred, "n (h p) (w q) c -> n h w (p q c)", p=2, q=2)

        x = jnp.concatenate([unshuffled.astype(self.dtype), voxels.astype(self.dtype)], axis=-1)
        skips = [self._conv(self.channels[FULL], "first")(blurred)]
        for scale in range(HALF, EIGHTH + 1):
            stride = 1 if scale == HALF else 2
            x = self._conv(self.channels[scale], f"enter{scale}", stride)(x)
            x = self._blocks(x, scale, self.encoder_blocks[scale - 1], clip, "encoder")
            skips.append(x)
        for scale in range(EIGHTH - 1, FULL - 1, -1):
            features = self.channels[scale]
            if scale == FULL:
                x = self._conv(4 * features, "up0")(x)
                x = rearrange(x, "n h w (p q c) -> n (h p) (w q) c", p=2, q=2)
            else:
                n, h, w, _ = skips[scale].shape
                x = jax.image.resize(x, (n, h, w, x.shape[-1]), "nearest")
                x = self._conv(features, f"up{scale}")(x)
            x += skips[scale]
            x = self._blocks(x, scale, self.decoder_blocks[scale], clip, "decoder")
        # Zeros: an untrained network returns its input, and training starts from there.
        last = self._conv(3, "last", kernel_init=nn.initializers.zeros)
        restored = blurred + last(x).astype(jnp.float32)
        return rearrange(restored, "(b t) h w c -> b t h w c", t=clip)
