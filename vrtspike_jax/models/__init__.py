"""The models: VRT, and VRT guided by spikes."""

from vrtspike_jax.models.published import published
from vrtspike_jax.models.vrt import VRT
from vrtspike_jax.models.vrtspike import VRTWithSpike

__all__ = ["VRT", "VRTWithSpike", "published"]
