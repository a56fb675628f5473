import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vrtspike_jax.data.alignment import COLUMNS, AlignmentLog
from vrtspike_jax.data.errors import DataError

HEADER = "frame_idx,t0,t1,event_count,seq\n"


def read(tmp_path, text, rate=1000.0):
    path = tmp_path / "align.txt"
    path.write_text(text)
    return AlignmentLog(path, rate)


def test_both_ends_are_steps_of_the_exposure(tmp_path):
    # As the original writes it: frame 20, 33 steps at 1000 a second, from 20 - 16 to 20 + 16.
    log = read(tmp_path, HEADER + "20,0.004000,0.036000,5,train/002/occ\n")
    assert log.exposure("train/002/occ", 20) == (4, 37)
    assert log.exposure("002/occ", 20, split="train") == (4, 37)


@pytest.mark.parametrize("rate", [240.0, 1000.0, 2640.0, 20_000.0])
def test_rounded_times_give_whole_steps(tmp_path, rate):
    rng = np.random.default_rng(0)
    starts = np.cumsum(rng.integers(1, 200, 50))
    lengths = rng.integers(2, 100, 50)
    lines = [
        f"{i},{s / rate:.6f},{(s + n - 1) / rate:.6f},0,a"
        for i, (s, n) in enumerate(zip(starts, lengths, strict=True))
    ]
    log = read(tmp_path, HEADER + "\n".join(lines), rate)
    assert len(log) == 50
    for i in range(50):
        assert log.exposure("a", i) == (starts[i], starts[i] + lengths[i])


def test_even_lengths_are_centred_to_the_half_step(tmp_path):
    # 88 steps around step 100: 56.5 to 143.5.
    log = read(tmp_path, HEADER + "100,0.0565,0.1435,0,a\n")
    assert log.exposure("a", 100) == (57, 145)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found header ''"),
        ("frame,t0,t1\n1,2,3\n", "found header 'frame,t0,t1'"),
        (HEADER + "1,0.0,0.1\n", "line 2: found 3 columns, wanted 5"),
        (HEADER + "1,0.0,zero,0,a\n", "line 2: found '1', '0.0', 'zero'"),
        (HEADER + "1,0,nan,0,a\n", "line 2: found t0=0.0, t1=nan"),
        (HEADER + "1,0,inf,0,a\n", "line 2: found t0=0.0, t1=inf"),
        (HEADER + "1,0.0,0.0,0,a\n", "wanted finite times with t0 < t1"),
        (HEADER + "1,0.2,0.1,0,a\n", "wanted finite times with t0 < t1"),
        (HEADER + "1,-0.016,0.016,0,a\n", "found an exposure of steps -16 to 16"),
        (HEADER + "1,0,1e300,0,a\n", "wanted them from 0 on"),
        (HEADER + "1,0,0.1,0,a\n1,0,0.2,0,a\n", "line 3: found frame 1 of 'a' twice"),
        (HEADER + "1,0,0.1,0,../a\n", "found sequence '../a'"),
        (HEADER + "1,0,0.1,0,/etc/a\n", "found sequence '/etc/a'"),
        (HEADER + "1,0,0.1,0,\n", "found sequence ''"),
    ],
)
def test_faults_name_the_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError, match=r"align\.txt") as error:
        read(tmp_path, text)
    assert message in str(error.value)


def test_a_frame_without_a_row_is_an_error(tmp_path):
    log = read(tmp_path, HEADER + "1,0.0,0.1,0,a\n")
    with pytest.raises(DataError, match="found no exposure of frame 2 of sequence 'a'"):
        log.exposure("a", 2)


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    path = tmp_path / "align.txt"
    path.write_bytes(HEADER.encode() + b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a readable CSV file"):
        AlignmentLog(path, 1000.0)


cells = st.one_of(
    st.integers(-(10**25), 10**25).map(str),
    st.floats().map(str),
    st.text(max_size=8),
    st.sampled_from(["a", "../b", "1e400", "0.001", '"', "\0", "seq/0"]),
)
rows = st.lists(st.lists(cells, min_size=1, max_size=7).map(",".join), max_size=6)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=rows, header=st.sampled_from([",".join(COLUMNS), ",".join(COLUMNS), "x"]))
def test_any_text_gives_exposures_or_a_data_error(tmp_path, rows, header):
    path = tmp_path / "fuzz.txt"
    path.write_text("\n".join([header, *rows]), errors="replace")
    try:
        log = AlignmentLog(path, 1000.0)
    except DataError as error:
        assert "fuzz.txt" in str(error)
        return
    assert 0 <= len(log) <= 6
