"""Smooth random motion of a layer, as homographies.

Time is in exposures: exposure k lasts from k to k + 1. Points are (x, y, 1), in pixels, with pixel
centres at whole numbers.
"""

import dataclasses

import numpy as np

_WAVES = 5
# Cycles an exposure. Hand shake is 2 to 12 Hz and exposures are around 1/20 s.
_FREQUENCIES = (0.05, 0.8)
# Beyond this logarithm of the magnification a texture shows its pixels, or aliases.
_LARGEST_ZOOM = 0.4
# What a motion is made of, by columns of its path.
_SHIFT, _TURN, _ZOOM, _TILT = slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)


@dataclasses.dataclass(frozen=True)
class Motion:
    """How a layer moves: shift, turn, zoom and tilt about its centre.

    Six curves, p_d(t) = velocity_d t + sum_k amplitude_dk sin(2 pi frequency_dk t + phase_dk)
    + offset_d: the shift x and y in frame pixels, the angle in radians, the logarithm of the
    magnification, and two perspective terms, the relative change of scale at `radius` in x and y.

    Attributes:
      velocity, offset: [6].
      amplitudes, frequencies, phases: [6, waves]; frequencies in cycles an exposure.
      centre: where the layer's centre is on the frame when its shift is 0, [x, y].
      radius: frame pixels from the centre at which the perspective terms count.
    """

    velocity: np.ndarray
    offset: np.ndarray
    amplitudes: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray
    centre: np.ndarray
    radius: float

    def curves(self, times: np.ndarray) -> np.ndarray:
        """The six curves at `times` [N]: [N, 6]."""
        angles = 2 * np.pi * times[:, None, None] * self.frequencies + self.phases
        waves = np.einsum("dk,ndk->nd", self.amplitudes, np.sin(angles))
        return times[:, None] * self.velocity + waves + self.offset

    def to_frame(self, times: np.ndarray) -> np.ndarray:
        """Homographies [N, 3, 3] from coordinates about the layer's centre to frame pixels."""
        curves = self.curves(times)
        place = curves[:, _SHIFT] + self.centre
        tilt = curves[:, _TILT] / self.radius
        scale, angle = np.exp(curves[:, 3]), curves[:, 2]
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        # Turn and zoom, then tilt, then shift: the product of the three matrices, written out.
        turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
        result = np.zeros((len(times), 3, 3))
        result[:, 2, :2] = np.einsum("ni,nij->nj", tilt, turn)
        result[:, 2, 2] = 1
        result[:, :2, :2] = turn + place[:, :, None] * result[:, 2:, :2]
        result[:, :2, 2] = place
        return result


def random_motion(
    rng: np.random.Generator,
    *,
    speed: float,
    shake: float,
    rotation: float,
    zoom: float,
    perspective: float,
    centre: np.ndarray,
    radius: float,
    duration: float,
) -> Motion:
    """Draws a motion.

    Args:
      rng: where the randomness comes from.
      speed: mean length of the centre's path in one exposure, frame pixels.
      shake: share of that path that is waves rather than a straight line, 0..1.
      rotation: most that the layer turns in one exposure on average, radians.
      zoom: most that the logarithm of the magnification changes in one exposure on average.
      perspective: largest relative change of scale from the centre to `radius`, at any time.
      centre, radius: see `Motion`; the centre is there at some time of the clip.
      duration: exposures in the clip.
    """
    direction = rng.standard_normal(6)
    direction[_SHIFT] /= np.linalg.norm(direction[_SHIFT]) + 1e-9
    shakes = np.array([shake, shake, *rng.uniform(0, 1, 4)])
    frequencies = rng.uniform(*_FREQUENCIES, (6, _WAVES))
    # Amplitudes like 1 / f give each wave the same share of the speed.
    amplitudes = rng.standard_normal((6, _WAVES)) / frequencies / (2 * np.pi * np.sqrt(_WAVES / 2))
    motion = Motion(
        velocity=(1 - shakes) * direction,
        offset=np.zeros(6),
        amplitudes=shakes[:, None] * amplitudes,
        frequencies=frequencies,
        phases=rng.uniform(0, 2 * np.pi, (6, _WAVES)),
        centre=np.asarray(centre, np.float64),
        radius=radius,
    )
    anchor = np.array([rng.uniform(0, duration)])
    times = np.linspace(0, duration, int(16 * duration) + 1)
    curves = motion.curves(times) - motion.curves(anchor)
    lengths = np.abs(np.diff(curves, axis=0)).sum(0) / duration
    lengths[_SHIFT] = np.linalg.norm(np.diff(curves[:, _SHIFT], axis=0), axis=1).sum() / duration
    lengths[_TILT] = np.linalg.norm(curves[:, _TILT], axis=1).max()
    wanted = np.array([rotation, zoom, perspective]) * rng.uniform(0, 1, 3)
    scales = np.array([speed, speed, *wanted, wanted[2]]) / np.maximum(lengths, 1e-9)
    # A long clip must not zoom on and on.
    reach = scales[3] * np.abs(curves[:, 3]).max()
    scales[_ZOOM] *= min(1.0, _LARGEST_ZOOM / max(reach, 1e-9))
    motion = dataclasses.replace(
        motion, velocity=scales * motion.velocity, amplitudes=scales[:, None] * motion.amplitudes
    )
    return dataclasses.replace(motion, offset=-motion.curves(anchor)[0])


def project(homographies: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Applies homographies [N, 3, 3] to points [P, 2] -> [N, P, 2]."""
    moved = homographies[:, None, :, :2] @ points[:, :, None]
    moved = moved[..., 0] + homographies[:, None, :, 2]
    return moved[..., :2] / moved[..., 2:]
