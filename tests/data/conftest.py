import numpy as np
import pytest
from example_sets import HEIGHT, WIDTH, PlainSet, frame_image, write_image

from vrtspike_jax.spikes import write_dat


@pytest.fixture
def plain_set(tmp_path) -> PlainSet:
    """Two sequences of 5 and 4 frames to train on, one of 5 to score."""
    plain = PlainSet(tmp_path / "set")
    plain.add(sequence=0, frames=5)
    plain.add(sequence=1, frames=4)
    plain.add(split="test", sequence=2, frames=5)
    return plain


@pytest.fixture
def gopro(plain_set) -> PlainSet:
    """The same set in the folders that GoPro + spike was published in."""
    for split in ("train", "test"):
        for folder in sorted((plain_set.root / split).iterdir()):
            spikes = plain_set.root / "GOPRO_Large_spike_seq" / split / folder.name
            spikes.mkdir(parents=True)
            (folder / "spike").rename(spikes / "spike")
            images = plain_set.root / "GOPRO_Large" / split
            images.mkdir(parents=True, exist_ok=True)
            folder.rename(images / folder.name)
    return plain_set


@pytest.fixture
def x4k(tmp_path) -> PlainSet:
    """Three exposures of 33 steps, centred on steps 16, 17 and 20 of a recording of 37."""
    x4k = PlainSet(tmp_path / "x4k")
    rng = np.random.default_rng(0)
    x4k.spikes = (rng.random((37, HEIGHT // 2, WIDTH // 2)) < 0.3).astype(np.uint8)
    clip = "002/occ008.320_f2881"
    for split in ("train", "val"):
        folder = x4k.root / f"{split}_spike_2xds" / clip
        folder.mkdir(parents=True)
        write_dat(folder / "spike.dat", x4k.spikes)
        for i, name in enumerate(("0004", "0004_000", "0005")):
            for part, kind in ((f"{split}_blurry_33", 0), (f"{split}_fullRGB", 1)):
                write_image(x4k.root / part / clip / f"{name}.png", frame_image(0, i, kind))
        # Sharp frames at the ends have no exposure around them.
        write_image(x4k.root / f"{split}_fullRGB" / clip / "0000.png", frame_image(0, 9, 1))
    return x4k
