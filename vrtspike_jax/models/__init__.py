"""The models: VRT, VRT guided by spikes, and a U-Net to compare them with."""

from vrtspike_jax.models.published import published
from vrtspike_jax.models.unet import UNetSpike
from vrtspike_jax.models.vrt import VRT
from vrtspike_jax.models.vrtspike import VRTWithSpike

__all__ = ["VRT", "UNetSpike", "VRTWithSpike", "published"]
