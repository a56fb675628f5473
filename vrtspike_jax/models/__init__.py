"""The models: VRT, VRT guided by spikes, a small U-Net for both, and one to compare with."""

from vrtspike_jax.models.published import published
from vrtspike_jax.models.unet import ShiftUNet, UNetSpike
from vrtspike_jax.models.vrt import VRT
from vrtspike_jax.models.vrtspike import VRTWithSpike

__all__ = ["VRT", "ShiftUNet", "UNetSpike", "VRTWithSpike", "published"]
