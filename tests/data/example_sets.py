"""Small data sets on disk whose every pixel says where it is from."""

import dataclasses
import pathlib

import cv2
import numpy as np

from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.data.geometry import whole_frame
from vrtspike_jax.spikes import write_dat

HEIGHT, WIDTH, STEPS = 48, 64, 8


def frame_image(sequence: int, frame: int, kind: int, height=HEIGHT, width=WIDTH) -> np.ndarray:
    """Pixel (y, x) is (y, x, a mark of sequence, frame and kind): no two places look alike."""
    y, x = np.mgrid[:height, :width]
    mark = np.full_like(y, 100 * sequence + 10 * kind + frame)
    return np.stack([y, x, mark], axis=-1).astype(np.uint8)


def frame_spikes(sequence: int, frame: int, height=HEIGHT // 2, width=WIDTH // 2, steps=STEPS):
    """Random, but the same for the same sequence and frame."""
    rng = np.random.default_rng([sequence, frame])
    return (rng.random((steps, height, width)) < 0.4).astype(np.uint8)


def write_image(path: pathlib.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def read_all(store, sequence):
    """All of a sequence: blur, sharp, spikes."""
    crop = whole_frame(store.geometry(sequence))
    parts = [store.read(sequence, i, crop) for i in range(store.lengths[sequence])]
    return [np.stack(arrays) for arrays in zip(*parts, strict=True)]


def assert_holds(store, sequence, number, frames):
    """The sequence is the one that `PlainSet.add` wrote as `number`."""
    blur, sharp, spikes = read_all(store, sequence)
    for i in range(frames):
        np.testing.assert_array_equal(blur[i], frame_image(number, i, 0))
        np.testing.assert_array_equal(sharp[i], frame_image(number, i, 1))
        np.testing.assert_array_equal(spikes[i], frame_spikes(number, i))


@dataclasses.dataclass
class PlainSet:
    """A data set in the plain layout, and a config that reads it."""

    root: pathlib.Path

    def config(self, **values):
        config = default_data_config()
        config.root = str(self.root)
        config.crop_size = 16
        config.clip_length = 3
        config.voxel.bins = 4
        for name, value in values.items():
            config[name] = value
        return config

    def add(self, split="train", sequence=0, frames=5, name=None, height=HEIGHT, width=WIDTH):
        folder = self.root / split / (name or f"seq{sequence}")
        for i in range(frames):
            for kind, part in enumerate(("blur", "sharp")):
                image = frame_image(sequence, i, kind, height, width)
                write_image(folder / part / f"{i:08d}.png", image)
            (folder / "spike").mkdir(exist_ok=True)
            spikes = frame_spikes(sequence, i, height // 2, width // 2)
            write_dat(folder / "spike" / f"{i:08d}.dat", spikes)
        return folder
