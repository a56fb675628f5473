"""GoPro + spike: GOPRO_Large, and spikes simulated from its 240 frames a second."""

import tensorflow_datasets as tfds
from vrtspike_jax_datasets.builders import SpikeBuilderConfig, SpikeDatasetBuilder


class GoproSpike(SpikeDatasetBuilder):
    """Builder `gopro_spike`; see `vrtspike_jax.data.layouts` for the folders it reads."""

    name = "gopro_spike"
    LAYOUT = "gopro"
    SPLITS = ("train", "test")
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Unpack GOPRO_Large (https://seungjunnah.github.io/Datasets/gopro) and GOPRO_Large_spike_seq
    side by side into the manual folder.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        SpikeBuilderConfig(name="tiled", description="Images as lossless PNG tiles."),
        SpikeBuilderConfig(name="whole", description="Image files as published.", tile=0),
        SpikeBuilderConfig(
            name="tiled_blur_gamma",
            description="Blurred frames with gamma correction, as lossless PNG tiles.",
            blur_folder="blur_gamma",
        ),
    ]
