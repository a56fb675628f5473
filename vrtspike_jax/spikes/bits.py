"""Bringing spikes of any numeric type to uint8."""

import numpy as np


def as_uint8(spikes: np.ndarray) -> np.ndarray:
    """Spikes as uint8, without a copy where they are uint8 or bool already.

    Args:
      spikes: any shape; bool, or numbers that are 0 or 1. Values of uint8 are trusted, as looking
        at each of them costs as much as counting them.

    Raises:
      ValueError: another type with other values.
    """
    spikes = np.asarray(spikes)
    if spikes.dtype == np.uint8:
        return spikes
    if spikes.dtype == np.bool_:
        return spikes.view(np.uint8)
    if not np.issubdtype(spikes.dtype, np.number):
        raise ValueError(f"found spikes of type {spikes.dtype}, wanted uint8 or bool, 0 or 1")
    if not ((spikes == 0) | (spikes == 1)).all():
        raise ValueError(
            f"found spike values {spikes.min()} to {spikes.max()} of type {spikes.dtype}, "
            "wanted 0 and 1"
        )
    return spikes.astype(np.uint8)
