"""Outlines of objects: alpha masks with hard or soft edges."""

import cv2
import numpy as np
from jaxtyping import Float32

_OVERSAMPLE = 4


def random_mask(
    rng: np.random.Generator, diameter: int, softness: float
) -> Float32[np.ndarray, "side side"]:
    """Draws the mask of an object.

    Args:
      rng: where the randomness comes from.
      diameter: size of the shape in pixels.
      softness: standard deviation of the blur of its edge, pixels.

    Returns:
      Coverage in 0..1. The side is the diameter and a margin that holds the soft edge, and the
      outermost pixels are 0, so that sampling outside of the mask is, too.
    """
    margin = 2 + int(np.ceil(3 * softness))
    side = diameter + 2 * margin
    kind = rng.choice(5, p=[0.4, 0.2, 0.15, 0.15, 0.1])
    draw = (_blob, _polygon, _ring, _bars, _spots)[kind]
    # Drawing large and averaging gives exact coverage at the edges.
    large = np.zeros((side * _OVERSAMPLE, side * _OVERSAMPLE), np.uint8)
    draw(rng, large, diameter * _OVERSAMPLE / 2)
    mask = cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    if softness > 0.1:
        mask = cv2.GaussianBlur(mask, (0, 0), softness)
    mask[:2] = mask[-2:] = 0
    mask[:, :2] = mask[:, -2:] = 0
    return mask


def _fill(picture: np.ndarray, angles: np.ndarray, radii: np.ndarray, value: int = 255) -> None:
    middle = picture.shape[0] / 2
    points = middle + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
    cv2.fillPoly(picture, [np.round(points).astype(np.int32)], value)


def _blob(rng: np.random.Generator, picture: np.ndarray, radius: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = np.arange(1, 7)
    amplitudes = rng.standard_normal((2, 6)) / waves**1.2 * rng.uniform(0, 0.45)
    shape = 1 + amplitudes[0] @ np.cos(np.outer(waves, angles))
    shape += amplitudes[1] @ np.sin(np.outer(waves, angles))
    shape = np.maximum(shape, 0.15)
    _fill(picture, angles, radius * shape / shape.max())


def _polygon(rng: np.random.Generator, picture: np.ndarray, radius: float) -> None:
    corners = int(rng.integers(3, 8))
    spread = rng.uniform(0.55, 1.0, corners)
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(0, 0.6, corners)) / corners
    _fill(picture, angles, radius * spread)


def _ring(rng: np.random.Generator, picture: np.ndarray, radius: float) -> None:
    _blob(rng, picture, radius)
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    hole = radius * rng.uniform(0.3, 0.6)
    _fill(picture, angles, hole * (1 + 0.2 * np.sin(2 * angles + rng.uniform(0, 6))), 0)


def _bars(rng: np.random.Generator, picture: np.ndarray, radius: float) -> None:
    """Fences and branches: thin things in front of others are where flow fails."""
    side = picture.shape[0]
    middle = side / 2
    for _ in range(int(rng.integers(2, 7))):
        angle, distance = rng.uniform(0, np.pi), rng.uniform(-0.7, 0.7) * radius
        half = np.sqrt(radius**2 - distance**2)
        normal = np.array([-np.sin(angle), np.cos(angle)])
        along = np.array([np.cos(angle), np.sin(angle)])
        first = np.round(middle + distance * normal - half * along).astype(int)
        last = np.round(middle + distance * normal + half * along).astype(int)
        width = max(2 * _OVERSAMPLE, int(radius * rng.uniform(0.04, 0.2)))
        cv2.line(picture, first.tolist(), last.tolist(), 255, width)


def _spots(rng: np.random.Generator, picture: np.ndarray, radius: float) -> None:
    middle = picture.shape[0] / 2
    for _ in range(int(rng.integers(3, 14))):
        angle, distance = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform(0, 0.7))
        centre = (
            int(middle + distance * np.cos(angle)),
            int(middle + distance * np.sin(angle)),
        )
        cv2.circle(picture, centre, max(2, int(radius * rng.uniform(0.06, 0.25))), 255, -1)
