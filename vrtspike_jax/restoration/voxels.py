"""What a model expects of its spikes, and how another camera's are brought to it."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, Num, UInt8

from vrtspike_jax.spikes import normalize_counts, voxel_counts

# Spikes with more pixels to a side than this, times those of training, are averaged to these.
FINER = 1.25


@dataclasses.dataclass(frozen=True)
class VoxelSettings:
    """How a model was fed: K bins, log1p or not, then (value - mean) / std.

    A model without a spike branch has 0 bins; it is handed voxels without channels. `steps` are
    those of the exposures it was trained on; 0 if these differed. A faster camera's counts are
    scaled down to what they would be then, which a model of one rate needs: on exposures of four
    times its steps the small model gains 3 dB by it. A slower camera's few counts are not scaled
    up, as that would only spread their gaps; but where it has fewer steps than there are bins, each
    step fills all the bins that it reaches into, in shares, as no bin was empty for want of steps
    in training.

    `spike_scale` is the number of spike pixels, down and across, to a frame's pixel in training; 0
    if these differed. Counts of a finer camera are averaged to that; those of a coarser one stay.
    """

    bins: int
    log: bool = True
    mean: float = 0.0
    std: float = 1.0
    steps: int = 0
    spike_scale: tuple[float, float] = (0.0, 0.0)

    def scale(self, steps: int) -> float:
        """What counts of an exposure of `steps` are multiplied by, each step counted `repeats`."""
        if not (self.bins and self.steps and steps):
            return 1.0
        return min(1.0, self.steps / steps) / self.repeats(steps)

    def repeats(self, steps: int) -> int:
        """How often each step is counted: often enough that bins get about equal shares of it."""
        return -(-2 * self.bins // steps) if 0 < steps < self.bins <= self.steps else 1

    def count(
        self, spikes: UInt8[np.ndarray, "S Hs Ws"], frame_size: tuple[int, int]
    ) -> Num[np.ndarray, "hs ws K"]:
        """Spikes of an exposure, 0 or 1, to counts as training would have had them."""
        steps, repeats = len(spikes), self.repeats(len(spikes))
        spikes = np.repeat(spikes, repeats, axis=0) if repeats > 1 else spikes
        return self.adapt(voxel_counts(spikes, self.bins), steps, frame_size)

    def size(self, spike_size: tuple[int, int], frame_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what the model gets of spikes of `spike_size`."""

        def fed(have: int, pixels: int, scale: float) -> int:
            trained = round(scale * pixels)
            return trained if trained and have > FINER * trained else have

        rows, columns = map(fed, spike_size, frame_size, self.spike_scale)
        return (rows, columns) if self.bins else tuple(frame_size)

    def adapt(
        self, counts: UInt8[np.ndarray, "*t Hs Ws K"], steps: int, frame_size: tuple[int, int]
    ) -> Num[np.ndarray, "*t hs ws K"]:
        """Counts of an exposure as training would have had them.

        Args:
          counts: as counted.
          steps: of the exposure.
          frame_size: height and width of the frames.

        Returns:
          The counts; float32 where they are scaled or averaged.
        """
        *lead, rows, columns, bins = counts.shape
        size, scale = self.size((rows, columns), frame_size), self.scale(steps)
        if size != (rows, columns):
            grids = counts.reshape(-1, rows, columns, bins).astype(np.float32)
            grids = [cv2.resize(g, size[::-1], interpolation=cv2.INTER_AREA) for g in grids]
            counts = np.stack(grids).reshape(*lead, *size, bins)
        return counts if scale == 1 else counts * np.float32(scale)

    def normalize(self, counts: Num[np.ndarray, "*n H W K"]) -> Float32[np.ndarray, "*n H W K"]:
        """Counts, whole or scaled, to the model's input."""
        return normalize_counts(counts, self.log, self.mean, self.std)
