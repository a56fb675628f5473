"""Readers of data sets: spikes, alignment logs, camera configs, images, paths, prepared sets."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
from damage import TEXTS, VALUES, changed, damaged
from harness import Target
from hypothesis import strategies as st
from pictures import SIZE, hostile_images

from vrtspike_jax.data import images
from vrtspike_jax.data.alignment import AlignmentLog
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.geometry import Crop
from vrtspike_jax.data.paths import Root
from vrtspike_jax.data.prepared import PreparedSequence
from vrtspike_jax.data.records import FrameRecord
from vrtspike_jax.scenes.films import load_film
from vrtspike_jax.scenes.photographs import PhotographError
from vrtspike_jax.spikes import DatError, MissingDatError, plausible_sizes, read_dat
from vrtspike_jax.spikes.camera import CameraConfigError, find_camera_config, read_camera_config


def targets(folder: Path) -> list[Target]:
    """All of them; they write their input to files in `folder`."""
    return [
        _dat(folder / "spikes.dat"),
        _dat_sizes(folder / "unknown.dat"),
        _alignment_log(folder / "log.csv"),
        _camera_config(folder / "camera" / "config.yaml"),
        _image(folder / "frame.png"),
        _film(folder / "film.npy"),
        _path(folder / "set"),
        _prepared_entry(),
        _record(),
    ]


_NUMBERS = st.one_of(
    st.integers(-2, 70), st.sampled_from([2**16, 2**31, 2**32, 2**40, 2**63, 10**12])
)


def _dat(path: Path) -> Target:
    fitting = st.builds(
        lambda height, width, steps, start: (
            (bytes([165]) * (steps * -(-height * width // 8)), (height, width), 0, start),
            (None, (0, height), (0, width)),
        ),
        st.integers(1, 9),
        st.integers(1, 17),
        st.integers(1, 9),
        st.integers(0, 9),
    ).map(lambda parts: parts[0] + parts[1])
    spans = st.none() | st.tuples(_NUMBERS, _NUMBERS)
    wild = st.tuples(
        st.binary(max_size=64) | st.integers(0, 300).map(bytes),
        st.tuples(_NUMBERS, _NUMBERS),
        st.sampled_from([0, 0, 0, 16]) | _NUMBERS,
        _NUMBERS,
        st.none() | _NUMBERS,
        spans,
        spans,
    )
    # Any mixture of a request that fits and a wild one.
    choose = st.integers(0, 127)
    inputs = st.builds(
        lambda fits, other, mask: tuple(
            b if mask >> i & 1 else a for i, (a, b) in enumerate(zip(fits, other, strict=True))
        ),
        fitting,
        wild,
        choose | st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64]),
    )

    def run(value):
        data, (height, width), head, start, count, rows, cols = value
        path.write_bytes(data)
        spikes = read_dat(
            path, height, width, start, count, rows=rows, cols=cols, head_columns=head
        )
        assert spikes.nbytes <= 8 * len(data), "more pixels than bits in the file"
        assert spikes.max(initial=0) <= 1

    return Target("spikes (.dat)", inputs, run, (DatError, MissingDatError), path.name)


def _dat_sizes(path: Path) -> Target:
    def run(data):
        path.write_bytes(data)
        for guess in plausible_sizes(path):
            assert guess.num_frames >= 1

    content = st.builds(
        lambda piece, times: piece * times, st.binary(max_size=40), st.integers(0, 300)
    )
    return Target("size of a .dat", content, run, (DatError,), path.name, weight=0.2)


def _alignment_log(path: Path) -> Target:
    header = b"frame_idx,t0,t1,event_count,seq\n"
    rows = b"0,0.000,0.032,7,train/a\n1,0.033,0.065,8,train/a\n"
    right = st.integers(0, 99).map(lambda i: [str(i), f"{i / 10}", f"{i / 10 + 0.05}", "7", "a"])
    odd = st.builds(
        lambda cells, at, text: [*cells[:at], text, *cells[at + 1 :]],
        right,
        st.integers(0, 5),
        TEXTS,
    )
    lines = st.lists(st.one_of(right, right, odd).map(",".join), max_size=5).map("\n".join)
    start = header + b"0,0,0.032,7,train/a\n"
    text = lines.map(lambda body: start + body.encode("utf-8", "surrogatepass"))
    rates = st.sampled_from([1000.0, 1e-6, 1e9])

    def run(value):
        data, rate = value
        path.write_bytes(data)
        log = AlignmentLog(path, rate)
        first, last = log.exposure("a", 0, "train")
        assert 0 <= first < last

    inputs = st.tuples(st.one_of(damaged([header + rows, header]), text), rates)
    return Target("alignment log", inputs, run, (DataError,), path.name)


_YAML = [
    b"filename: set\nspike_w: 640\nspike_h: 360\nis_labeled: False\nlabeled_data_type: [0]\n",
    b"spike_h: 1\nspike_w: 2\nhead_columns: 16\n",
    b"spike_h: &a 8\nspike_w: *a\n<<: {x: 1}\n",
    # A few lines that name a thousand million elements.
    b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)
    )
    + b"filename: *j\nspike_h: *j\nspike_w: 4\n",
    b"a: &a {x: 1}\n"
    + b"".join(
        b"%c: &%c {<<: [%s]}\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9))
        for i in range(9)
    )
    + b"spike_h: 3\nspike_w: 4\n",
    b"spike_h: !!python/object/apply:os.system ['false']\nspike_w: 4\n",
    b"&a [*a]\n",
]


def _camera_config(path: Path) -> Target:
    path.parent.mkdir()
    value = st.one_of(
        TEXTS,
        st.sampled_from(
            ["!!int x", "!!float x", "!!binary x", "!!timestamp x", "2001-99-99", "1:99:99", "0b",
             "!!set {a}", "*b", "&a [*a]", "? [1]", "{a: b", "0o8", "[[[", "- - -", "1e9", "400",
             "!!python/name:os.system", "!!omap [a]", "!!pairs [a]", "<<: *a", "360", "-360"]
        ),
    )  # fmt: skip
    keys = st.sampled_from(["spike_h", "spike_w", "head_columns", "filename", "<<", "x"])
    lines = st.lists(st.tuples(keys, value).map(": ".join), max_size=5).map("\n".join)
    text = lines.map(lambda body: body.encode("utf-8", "surrogatepass"))

    def run(data):
        path.write_bytes(data)
        find_camera_config(path.parent / "a.dat")
        camera = read_camera_config(path)
        assert 1 <= camera.height <= 2**14 and 1 <= camera.width <= 2**14
        assert len(camera.name) <= 10_000

    return Target(
        "config.yaml", st.one_of(damaged(_YAML), text), run, (CameraConfigError,), path.name
    )


def _image(path: Path) -> Target:
    windows = [(None, None), ((0, 8), (4, 12)), ((16, 24), (0, 32))]

    def run(value):
        data, window = value
        rows, cols = windows[window % 3]
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = images.header_size(str(path), str(path), 2**20)
            assert size[0] * size[1] <= 2**20
            images.looks_complete(str(path))
            image = images.read(str(path), SIZE, rows, cols)
        assert image.shape == ((8, 8, 3) if rows == (0, 8) else (8, 32, 3) if rows else (*SIZE, 3))

    inputs = st.tuples(hostile_images(), st.integers(0, 2))
    return Target("images", inputs, run, (DataError,), path.name)


def _film(path: Path) -> Target:
    def npy(array) -> bytes:
        np.save(path, array)
        return path.read_bytes()

    samples = [npy(np.zeros((3, 8, 8, 3), np.uint8)), npy(np.zeros((3, 8, 8), np.float32))]
    samples.append(npy(np.array([{}], dtype=object)))

    def run(data):
        path.write_bytes(data)
        film = load_film.__wrapped__(str(path))
        assert film.ndim == 4 and film.nbytes <= len(data)
        film.sum()

    return Target("films", damaged(samples), run, (PhotographError,), path.name)


def _path(root: Path) -> Target:
    """No name leads out of a data set: not by "..", an absolute path, or a link."""
    (root / "inner").mkdir(parents=True)
    (root / "out").symlink_to("..")
    (root / "up").symlink_to(root.parent)
    (root / "loop").symlink_to("loop")
    (root / "inner" / "back").symlink_to("..")
    parts = st.sampled_from(["inner", "out", "up", "loop", "back", "..", ".", "", "~", "/", "x"])
    names = st.lists(st.one_of(parts, TEXTS), max_size=5).map("/".join)
    real = os.path.realpath(root)

    def run(name):
        found = Root(root).inside(name)
        resolved = os.path.realpath(found)
        assert resolved == real or resolved.startswith(real + os.sep), resolved

    return Target("paths in a set", names, run, (DataError,), root.name)


_ENTRY = {
    "name": "a/b",
    "frames": ["0000", "0001"],
    "frame_size": [48, 64],
    "spike_size": [24, 32],
    "steps": 8,
    "tile": [128, 128],
}


def _prepared_entry() -> Target:
    def run(entry):
        found = PreparedSequence.from_json(entry, "metadata.json")
        json.dumps(found.to_json())
        sides = (*found.geometry.frame, *found.geometry.spike, *found.tile)
        assert all(1 <= side <= 2**14 for side in sides)

    inputs = st.one_of(changed([_ENTRY]), VALUES)
    return Target("metadata.json of a set", inputs, run, (DataError,), "metadata.json")


def _record() -> Target:
    """A record of a prepared set: its fields have the types that TFDS gives, and any contents."""
    record = FrameRecord("record 7", SIZE, SIZE, (2, 12, 16))
    crop = Crop((0, 8), (0, 8), (0, 4), (0, 4))
    tiles = st.lists(hostile_images(), min_size=1, max_size=2)
    sizes = st.just(SIZE) | st.tuples(st.integers(-(2**62), 2**62), st.integers(0, 9))
    spikes = st.just((2, 12, 16)) | st.tuples(*[st.integers(0, 2**40)] * 3)

    def run(value):
        blur, sharp, size, tile, spike_size, packed = value
        example = {
            "size": np.array(size, np.int64),
            "tile": np.array(tile, np.int64),
            "spike_size": np.array(spike_size, np.int64),
            "blur": blur,
            "sharp": sharp,
            "spikes": packed,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = record.decode(example, crop)
        assert [part.shape for part in found] == [(8, 8, 3), (8, 8, 3), (2, 4, 4)]

    packed = st.just(bytes(48)) | st.binary(max_size=60)
    inputs = st.tuples(tiles, tiles, sizes, st.just(SIZE), spikes, packed)
    return Target("records of a set", inputs, run, (DataError,), "record 7", weight=0.5)
