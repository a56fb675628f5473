"""Drawing a random view of a clip: crop, mirroring, quarter turns, playing it backwards.

Frames and spikes are changed alike. Backwards, the raw spike steps of each exposure are reversed
too, before they are counted: reversing the bins instead is not the same where S / K is not whole.
"""

import dataclasses

import numpy as np

from vrtspike_jax.spikes.voxel import trained_counts, voxel_counts


@dataclasses.dataclass(frozen=True)
class View:
    """What to do to a clip, in this order: reverse time, mirror, then turn anticlockwise.

    Attributes:
      reverse: play backwards.
      mirror_rows, mirror_cols: upside down, and left to right.
      turn: turn by 90 degrees.
    """

    reverse: bool = False
    mirror_rows: bool = False
    mirror_cols: bool = False
    turn: bool = False

    def apply(
        self,
        blur: np.ndarray,
        sharp: np.ndarray,
        spikes: np.ndarray,
        bins: int,
        trained_steps: int = 0,
    ) -> dict[str, np.ndarray]:
        """Changes a clip and counts its spikes.

        Args:
          blur, sharp: uint8 [T, H, W, 3].
          spikes: raw, uint8 [T, S, Hs, Ws].
          bins: time bins of an exposure, K.
          trained_steps: where S is not that of the model, or differs from clip to clip, that of the
            model; see `vrtspike_jax.spikes.trained_counts`.

        Returns:
          `blur`, `sharp` as before (H and W swapped by a turn), and `spikes` as counts
          [T, Hs, Ws, K], uint8, or float32 with `trained_steps`.
        """
        if self.reverse:
            blur, sharp, spikes = blur[::-1], sharp[::-1], spikes[::-1, ::-1]
        if trained_steps:
            # Of one type, as clips of any S go into a batch.
            counts = trained_counts(spikes, bins, trained_steps).astype(np.float32)
        else:
            counts = voxel_counts(spikes, bins)
        return {
            "blur": self._move(blur),
            "sharp": self._move(sharp),
            "spikes": self._move(counts),
        }

    def _move(self, x: np.ndarray) -> np.ndarray:
        """[T, H, W, C] -> [T, H, W, C] or [T, W, H, C]."""
        if self.mirror_rows:
            x = x[:, ::-1]
        if self.mirror_cols:
            x = x[:, :, ::-1]
        if self.turn:
            x = np.rot90(x, axes=(1, 2))
        return np.ascontiguousarray(x)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which changes may be drawn. Mirroring and turning give all eight views of a square."""

    flip: bool = True
    rotate: bool = True
    reverse_time: bool = True

    def draw(self, rng: np.random.Generator) -> View:
        """Draws a view; takes the same number of draws whatever is allowed."""
        reverse, rows, cols, turn = (rng.random(4) < 0.5).tolist()
        if not self.flip:
            # Quarter turns alone: half a turn is both mirrorings together.
            rows = cols = rows and self.rotate
        return View(
            reverse=reverse and self.reverse_time,
            mirror_rows=rows,
            mirror_cols=cols,
            turn=turn and self.rotate,
        )
