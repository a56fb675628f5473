"""SpyNet, coarse-to-fine optical flow (Ranjan and Black, CVPR 2017), as VRT uses it."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vrtspike_jax.models.layers import Conv, ConvParameters
from vrtspike_jax.ops import conv_relu, flow_warp, resize_align_corners, resize_bilinear

LEVELS = 6
SCALES = (1, 2, 4, 8)
# ImageNet statistics of RGB in [0, 1], with which the published weights were trained.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class BasicModule(nn.Module):
    """Five 7x7 convolutions from two images and a flow (8 channels) to a flow residual.

    Attributes:
        kernels: Implementation of `conv_relu`.
    """

    kernels: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 8"]) -> Float[Array, "n h w 2"]:
        for i, features in enumerate((32, 64, 32, 16)):
            parameters = ConvParameters(features, (7, 7), name=f"basic_module_{2 * i}")(x.shape[-1])
            x = conv_relu(x, *parameters, self.kernels)
        # Untrained flow is no motion, rather than a random one.
        return Conv(2, (7, 7), padding=3, kernel_init=nn.initializers.zeros, name="basic_module_8")(
            x
        )


class SpyNet(nn.Module):
    """Flow from a reference to a supporting image, always in float32.

    Attributes:
        kernels: Implementation of `conv_relu`; "xla" multiplies float32.
    """

    kernels: str = "xla"

    @nn.compact
    def __call__(
        self, reference: Float[Array, "n h w 3"], support: Float[Array, "n h w 3"]
    ) -> list[Float[Array, "n h_s w_s 2"]]:
        """Estimates where each reference pixel lies in the supporting image.

        Args:
            reference: RGB in [0, 1], any size of at least 32 x 32.
            support: RGB in [0, 1], the same size.

        Returns:
            Flows (x, y) in pixels of their own scale, at scales 1, 1/2, 1/4 and 1/8.
        """
        h, w = reference.shape[1:3]
        h_floor, w_floor = -(-h // 32) * 32, -(-w // 32) * 32

        def pyramid(image):
            image = resize_bilinear(image.astype(jnp.float32), h_floor, w_floor)
            levels = [(image - MEAN) / STD]
            for _ in range(LEVELS - 1):
                levels.insert(0, nn.avg_pool(levels[0], (2, 2), (2, 2)))
            return levels

        flows = []
        upsampled = jnp.zeros((reference.shape[0], h_floor // 32, w_floor // 32, 2), jnp.float32)
        for level, (ref, sup) in enumerate(zip(pyramid(reference), pyramid(support), strict=True)):
            if level:
                upsampled = 2 * resize_align_corners(upsampled, *ref.shape[1:3])
            warped = flow_warp(sup, upsampled, padding="border")
            residual = BasicModule(self.kernels, name=f"basic_module_{level}")(
                jnp.concatenate([ref, warped, upsampled], axis=-1)
            )
            upsampled = upsampled + residual
            scale = 2 ** (LEVELS - 1 - level)
            if scale in SCALES:
                size = h // scale, w // scale
                stretch = size[1] / (w_floor // scale), size[0] / (h_floor // scale)
                flows.insert(0, resize_bilinear(upsampled, *size) * jnp.array(stretch))
        return flows
