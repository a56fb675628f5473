"""One element of the training stream: a clip, read, cropped, changed at random and counted."""

import numpy as np

from vrtspike_jax.data.augment import Augmentation
from vrtspike_jax.data.clips import ClipArrays, ClipSource
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.geometry import draw_crop

# Clips tried in place of an unreadable one. So many in a row means that the disk is gone.
MAX_REPLACEMENTS = 8
NO_CLIP = -1


class LoadClip:
    """Turns the index of a clip into arrays, the same for the same index and random generator.

    A clip that cannot be read is replaced by another, which the generator draws, so that a stream
    is the same whenever and wherever it is read. The replaced ones are listed in `skipped`.

    Args:
      source: the clips.
      augmentation: what may be drawn.
      crop_size: side of the square crop in frame pixels; 0 keeps whole frames.
      bins: time bins of an exposure, K.
      trained_steps: as in `View.apply`.
    """

    def __init__(
        self,
        source: ClipSource,
        augmentation: Augmentation,
        crop_size: int,
        bins: int,
        trained_steps: int = 0,
    ):
        self._source = source
        self._augmentation = augmentation
        self._crop_size = crop_size
        self._bins = bins
        self._trained_steps = trained_steps

    def __call__(self, index: int, rng: np.random.Generator) -> ClipArrays:
        """Loads clip `index`, or one in its place.

        Returns:
          `blur`, `sharp`, `spikes` (counts) of `View.apply`; `index` int64 (), the clip that was
          read; `skipped` int64 (MAX_REPLACEMENTS,), clips that could not be, then NO_CLIP.

        Raises:
          DataError: nor could any of MAX_REPLACEMENTS others.
        """
        skipped = np.full(MAX_REPLACEMENTS, NO_CLIP, np.int64)
        for attempt in range(MAX_REPLACEMENTS + 1):
            view = self._augmentation.draw(rng)
            crop = draw_crop(self._source.geometry(index), self._crop_size, rng)
            try:
                clip = self._source.read(index, crop)
            except DataError as error:
                if attempt == MAX_REPLACEMENTS:
                    raise DataError(
                        f"{attempt + 1} clips in a row could not be read, the last "
                        f"({self._source.name(index)}): {error}"
                    ) from None
                skipped[attempt] = index
                index = int(rng.integers(len(self._source)))
                continue
            return {
                **view.apply(**clip, bins=self._bins, trained_steps=self._trained_steps),
                "index": np.int64(index),
                "skipped": skipped,
            }
        raise AssertionError("unreachable")
