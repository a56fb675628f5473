"""X4K1000FPS + spike: averages of 33 frames at 1000 frames a second, one spike step each."""

import tensorflow_datasets as tfds
from vrtspike_jax_datasets.builders import SpikeBuilderConfig, SpikeDatasetBuilder


class X4kSpike(SpikeDatasetBuilder):
    """Builder `x4k_spike`; see `vrtspike_jax.data.layouts` for the folders it reads."""

    name = "x4k_spike"
    LAYOUT = "x4k"
    SPLITS = ("train", "val")
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put <split>_blurry_33 (or _65), <split>_fullRGB and <split>_spike_2xds, for the splits train
    and val, into the manual folder.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        SpikeBuilderConfig(name="tiled_33", description="33 steps an exposure.", steps=33),
        SpikeBuilderConfig(name="tiled_65", description="65 steps an exposure.", steps=65),
    ]
