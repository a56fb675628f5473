"""What a model expects of its spikes, and how another camera's are brought to it."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, Num, UInt8

from vrtspike_jax.spikes import is_shared, normalize_counts, trained_counts

# Spikes with more pixels to a side than this, times those of training, are averaged to these.
FINER = 1.25


@dataclasses.dataclass(frozen=True)
class VoxelSettings:
    """How a model was fed: K bins, log1p or not, then (value - mean) / std.

    A model without a spike branch has 0 bins; it is handed voxels without channels. `steps` are
    those of the exposures it was trained on, the most if scenes had several; 0 if unknown. Other
    cameras' spikes are counted by `vrtspike_jax.spikes.trained_counts`, in training too.

    `spike_scale` is the number of spike pixels, down and across, to a frame's pixel in training; 0
    if these differed. A finer camera's counts become those of such a one; a coarser one's stay.
    """

    bins: int
    log: bool = True
    mean: float = 0.0
    std: float = 1.0
    steps: int = 0
    spike_scale: tuple[float, float] = (0.0, 0.0)

    def are_whole(self, steps: int) -> bool:
        """Whether counts of an exposure of `steps` are whole numbers."""
        return not is_shared(steps, self.bins, self.steps)

    def count(
        self, spikes: UInt8[np.ndarray, "S Hs Ws"], frame_size: tuple[int, int]
    ) -> Num[np.ndarray, "hs ws K"]:
        """Spikes of an exposure, 0 or 1, to counts as training would have had them."""

        def average(counts: np.ndarray) -> np.ndarray:
            return self.resize(counts, frame_size)

        return trained_counts(spikes, self.bins, self.steps, average)

    def size(self, spike_size: tuple[int, int], frame_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what the model gets of spikes of `spike_size`."""

        def fed(have: int, pixels: int, scale: float) -> int:
            trained = round(scale * pixels)
            return trained if trained and have > FINER * trained else have

        rows, columns = map(fed, spike_size, frame_size, self.spike_scale)
        return (rows, columns) if self.bins else tuple(frame_size)

    def resize(
        self, counts: Num[np.ndarray, "*t Hs Ws K"], frame_size: tuple[int, int]
    ) -> Num[np.ndarray, "*t hs ws K"]:
        """Counts averaged to the size of training (float32), or the same ones if they have it."""
        *lead, rows, columns, bins = counts.shape
        size = self.size((rows, columns), frame_size)
        if size == (rows, columns):
            return counts
        grids = counts.reshape(-1, rows, columns, bins).astype(np.float32)
        grids = [cv2.resize(g, size[::-1], interpolation=cv2.INTER_AREA) for g in grids]
        return np.stack(grids).reshape(*lead, *size, bins)

    def normalize(self, counts: Num[np.ndarray, "*n H W K"]) -> Float32[np.ndarray, "*n H W K"]:
        """Counts, whole or scaled, to the model's input."""
        return normalize_counts(counts, self.log, self.mean, self.std)
