import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrtspike_jax.spikes import DatError, DatFile, MissingDatError, read_dat, write_dat


def random_spikes(shape, seed=0, rate=0.3):
    return (np.random.default_rng(seed).random(shape) < rate).astype(np.uint8)


def decode_by_loops(data: bytes, height, width, head=0):
    """The format spelled out: one bit at a time, LSB first, bottom row first."""
    size = -(-height * (width + head) // 8)
    frames = []
    for first in range(0, len(data), size):
        frame = np.zeros((height, width), np.uint8)
        for row in range(height):
            for col in range(width):
                index = row * (width + head) + col
                bit = (data[first + index // 8] >> (index % 8)) & 1
                frame[height - 1 - row, col] = bit
        frames.append(frame)
    return np.stack(frames)


def test_known_bytes_decode_to_known_pixels(tmp_path):
    # Two rows of 8 pixels: the first stored byte is the bottom row, its lowest bit the left pixel.
    (tmp_path / "a.dat").write_bytes(bytes([0b00000001, 0b10000000, 0b11110000, 0b00000000]))
    expected = [
        [[0, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]],
    ]
    spikes = read_dat(tmp_path / "a.dat", 2, 8)
    assert spikes.dtype == np.uint8
    np.testing.assert_array_equal(spikes, expected)


def test_known_pixels_encode_to_known_bytes(tmp_path):
    spikes = np.zeros((1, 2, 16), np.uint8)
    spikes[0, 0, [0, 9]] = 1  # top row: stored last
    spikes[0, 1, 7] = 1
    assert write_dat(tmp_path / "a.dat", spikes) == 1
    assert (tmp_path / "a.dat").read_bytes() == bytes([0x80, 0x00, 0x01, 0x02])


@pytest.mark.parametrize(
    ("height", "width", "head"), [(5, 16, 0), (4, 24, 16), (3, 5, 0), (2, 7, 3)]
)
def test_reading_equals_decoding_bit_by_bit(tmp_path, height, width, head):
    size = -(-height * (width + head) // 8)
    data = np.random.default_rng(1).integers(0, 256, 3 * size, dtype=np.uint8).tobytes()
    (tmp_path / "a.dat").write_bytes(data)
    spikes = read_dat(tmp_path / "a.dat", height, width, head_columns=head)
    np.testing.assert_array_equal(spikes, decode_by_loops(data, height, width, head))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_window_of_any_range_is_the_slice_of_the_whole(tmp_path_factory, data):
    frames, height, width = (data.draw(st.integers(1, n)) for n in (6, 11, 37))
    head = data.draw(st.sampled_from([0, 3, 16]))
    spikes = random_spikes((frames, height, width), data.draw(st.integers(0, 99)))
    path = tmp_path_factory.mktemp("dat") / "a.dat"
    write_dat(path, spikes, head_columns=head)
    start = data.draw(st.integers(0, frames))
    count = data.draw(st.integers(0, frames - start))
    y0 = data.draw(st.integers(0, height - 1))
    y1 = data.draw(st.integers(y0 + 1, height))
    x0 = data.draw(st.integers(0, width - 1))
    x1 = data.draw(st.integers(x0 + 1, width))
    part = read_dat(
        path, height, width, start, count, rows=(y0, y1), cols=(x0, x1), head_columns=head
    )
    np.testing.assert_array_equal(part, spikes[start : start + count, y0:y1, x0:x1])


def test_a_result_can_be_changed_without_touching_the_file(tmp_path):
    spikes = random_spikes((2, 8, 16))
    write_dat(tmp_path / "a.dat", spikes)
    read_dat(tmp_path / "a.dat", 8, 16)[:] = 1
    np.testing.assert_array_equal(read_dat(tmp_path / "a.dat", 8, 16), spikes)


def test_chunks_written_one_by_one_make_one_recording(tmp_path):
    spikes = random_spikes((7, 6, 16))
    assert write_dat(tmp_path / "a.dat", (spikes[i : i + 3] for i in (0, 3, 6))) == 7
    recording = DatFile(tmp_path / "a.dat", 6, 16)
    assert len(recording) == recording.num_frames == 7
    chunks = list(recording.chunks(4))
    assert [len(chunk) for chunk in chunks] == [4, 3]
    np.testing.assert_array_equal(np.concatenate(chunks), spikes)


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32])
def test_spikes_of_other_types_are_written_like_bytes(tmp_path, kind):
    spikes = random_spikes((2, 4, 8))
    write_dat(tmp_path / "a.dat", spikes.astype(kind))
    np.testing.assert_array_equal(read_dat(tmp_path / "a.dat", 4, 8), spikes)


def test_an_open_recording_survives_pickling(tmp_path):
    spikes = random_spikes((2, 4, 8))
    write_dat(tmp_path / "a.dat", spikes)
    recording = pickle.loads(pickle.dumps(DatFile(tmp_path / "a.dat", 4, 8)))
    np.testing.assert_array_equal(recording.read(), spikes)


def test_a_truncated_file_names_itself_the_size_found_and_the_size_wanted(tmp_path):
    path = tmp_path / "cut.dat"
    write_dat(path, random_spikes((2, 250, 400)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.dat.*24999 bytes.*12500 bytes.*250 x 400"):
        read_dat(path, 250, 400)


def test_a_head_of_the_wrong_width_is_noticed(tmp_path):
    write_dat(tmp_path / "a.dat", random_spikes((3, 10, 400)), head_columns=16)
    with pytest.raises(DatError, match="1560 bytes"):
        read_dat(tmp_path / "a.dat", 10, 400)


@pytest.mark.parametrize(
    "request_",
    [
        {"start": 3, "count": 2},
        {"start": -1},
        {"start": 5},
        {"count": 5},
        {"rows": (0, 9)},
        {"cols": (4, 4)},
        {"cols": (-1, 4)},
    ],
)
def test_asking_for_more_than_there_is_raises(tmp_path, request_):
    write_dat(tmp_path / "a.dat", random_spikes((4, 8, 16)))
    with pytest.raises(DatError, match=r"a\.dat"):
        read_dat(tmp_path / "a.dat", 8, 16, **request_)


def test_a_missing_file_is_both_a_value_error_and_a_missing_file(tmp_path):
    with pytest.raises(MissingDatError, match=r"none\.dat") as caught:
        read_dat(tmp_path / "none.dat", 8, 16)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FileNotFoundError)


def test_an_empty_file_raises(tmp_path):
    (tmp_path / "a.dat").touch()
    with pytest.raises(DatError, match="empty"):
        read_dat(tmp_path / "a.dat", 8, 16)


@pytest.mark.parametrize(
    "spikes",
    [
        np.full((2, 4, 8), 2, np.uint8),
        np.full((2, 4, 8), -1, np.int8),
        np.full((2, 4, 8), 0.5, np.float32),
        np.zeros((4, 8), np.uint8),
        np.zeros((0, 4, 8), np.uint8),
    ],
)
def test_what_is_not_spikes_is_refused_and_leaves_the_old_file(tmp_path, spikes):
    path = tmp_path / "a.dat"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"a\.dat"):
        write_dat(path, spikes)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.dat"]
