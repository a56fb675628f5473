"""Training losses: Charbonnier and VGG16 perceptual."""

from vrtspike_jax.losses.charbonnier import charbonnier
from vrtspike_jax.losses.vgg import load_vgg16, perceptual_loss, vgg16_features

__all__ = ["charbonnier", "load_vgg16", "perceptual_loss", "vgg16_features"]
