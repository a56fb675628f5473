"""What the builders share: from files in a published layout to records."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from vrtspike_jax.data.layouts import LayoutOptions, find_sequences
from vrtspike_jax.data.paths import Root
from vrtspike_jax.data.prepared import PreparedSequence, metadata
from vrtspike_jax.data.records import TILE, encode_frame, features
from vrtspike_jax.data.sequences import Sequence
from vrtspike_jax.data.verify import VerifyOptions, check_same_steps, verify_sequences


class SpikeBuilderConfig(tfds.core.BuilderConfig):
    """A variant of a data set.

    Attributes:
      tile: side of an image tile in pixels; 0 keeps the published image files byte for byte.
      blur_folder: folder of the blurred frames, for layouts that have several.
      steps: spike steps an exposure, for layouts that have several.
    """

    def __init__(
        self, *, tile: int = TILE, blur_folder: str = "blur", steps: int = 0, **values: Any
    ):
        super().__init__(**values)
        self.tile = tile
        self.blur_folder = blur_folder
        self.steps = steps


class SpikeDatasetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders; `manual_dir` is the folder of the published files.

    Every file is verified before the first record is written; a fault is a `ValueError` that names
    the file. Subclasses set `LAYOUT` and `SPLITS`.
    """

    LAYOUT = ""
    SPLITS: tuple[str, ...] = ()

    def __init__(self, *, file_format: str | None = "array_record", **values: Any):
        # TFDS's own default, TFRecord, needs TensorFlow and has no random access.
        super().__init__(file_format=file_format, **values)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features(),
            metadata=tfds.core.MetadataDict(),
            # Records lie in the order of time, so that a clip is a run of neighbours.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Root(dl_manager.manual_dir)
        config = self.builder_config
        options = LayoutOptions(
            layout=self.LAYOUT, blur_folder=config.blur_folder, steps=config.steps
        )
        splits = {}
        for split in self.SPLITS:
            found = find_sequences(root, split, options)
            splits[split] = verify_sequences(found, VerifyOptions(steps=config.steps))
            check_same_steps(splits[split])
        entries = {
            split: [PreparedSequence.of(s, config.tile) for s in found]
            for split, found in splits.items()
        }
        self.info.metadata.update(metadata(entries))
        return {split: self._generate_examples(found) for split, found in splits.items()}

    def _generate_examples(self, sequences: list[Sequence]) -> Iterator[tuple[int, Any]]:
        key = 0
        for sequence in sequences:
            for frame in range(len(sequence.files)):
                yield key, encode_frame(sequence, frame, self.builder_config.tile)
                key += 1
