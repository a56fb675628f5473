import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import world

from vrtspike_jax.metrics import psnr
from vrtspike_jax.scenes import render_clip
from vrtspike_jax.spikes import write_dat


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_folder_of_frames_and_a_folder_of_spikes(vrtspike, checkpoint, tmp_path):
    blur, spikes, frames = world.write_sequence(tmp_path, 7, (90, 134))
    out, summary = tmp_path / "out", tmp_path / "summary.json"
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", spikes, "--out", out, "--checkpoint", checkpoint,
        "--tile", 64, "--tile-overlap", 16, "--json", summary,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(world.read_images(out), frames)
    assert [p.stem for p in sorted(out.glob("*.png"))] == [p.stem for p in sorted(blur.iterdir())]
    found = json.loads(summary.read_text())
    assert found["frames"] == 7 and found["tile"] == [64, 64] and found["tiles"] > 4
    assert json.loads((out / "deblur.json").read_text())["state"] == "done"
    assert "16 steps a frame" in result.stderr and "spikes 45 x 67" in result.stderr


def test_sixteen_bits_stay_sixteen_bits(vrtspike, checkpoint, tmp_path):
    blur, spikes, frames = world.write_sequence(tmp_path, 3, (64, 80), np.uint16)
    for name, depth in (("same", []), ("eight", ["--bit-depth", 8])):
        out = tmp_path / name
        result = vrtspike(
            "deblur", "--blur", blur, "--spikes", spikes, "--out", out,
            "--checkpoint", checkpoint, "--no-tile", *depth,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(world.read_images(tmp_path / "same"), frames)
    eight = world.read_images(tmp_path / "eight")
    assert eight.dtype == np.uint8
    assert np.abs(eight - frames / 257).max() <= 0.5001


def test_jpeg_in_and_out(vrtspike, checkpoint, tmp_path):
    frames = world.make_frames(2, (70, 64))
    blur = world.write_images(tmp_path / "blur", frames, ".jpg")
    spikes = world.write_spikes(tmp_path / "spike", world.make_spikes(frames, (35, 32)))
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", spikes, "--out", tmp_path / "out",
        "--checkpoint", checkpoint, "--format", "jpg",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    stored, restored = world.read_images(blur, ".jpg"), world.read_images(tmp_path / "out", ".jpg")
    assert np.abs(stored.astype(int) - restored).mean() < 3


def test_video_in_and_out_with_one_long_recording(vrtspike, checkpoint, tmp_path):
    frames = world.make_frames(12, (66, 98))
    video = world.write_video(tmp_path / "blur.mp4", frames, fps=12)
    spikes = world.make_spikes(frames, (33, 49))
    # Three steps before the first exposure, five after the last.
    edge = np.zeros((5, 33, 49), np.uint8)
    write_dat(tmp_path / "spikes.dat", np.concatenate([edge[:3], *spikes, edge]))
    common = (
        "deblur", "--blur", video, "--spikes", tmp_path / "spikes.dat", "--spike-start", 3,
        "--spikes-per-frame", 16, "--spike-size", "33x49", "--checkpoint", checkpoint,
    )  # fmt: skip
    out = tmp_path / "sharp.mp4"
    result = vrtspike(*common, "--out", out, "--crf", 0)
    assert result.exit_code == 0, result.output
    reader = imageio_ffmpeg.read_frames(str(out))
    meta = next(reader)
    restored = np.stack([np.frombuffer(f, np.uint8).reshape(66, 98, 3) for f in reader])
    assert meta["fps"] == 12 and len(restored) == 12
    # Lossless but for the conversion to half-resolution chroma.
    assert np.abs(restored.mean(-1) - frames.mean(-1)).mean() < 4
    assert "deblur.json" not in listing(tmp_path)
    folder = tmp_path / "folder"
    assert vrtspike(*common, "--out", folder).exit_code == 0
    np.testing.assert_array_equal(world.read_images(folder), frames)


def test_one_long_recording_may_lie_in_a_folder(vrtspike, checkpoint, tmp_path):
    frames = world.make_frames(3, (64, 64))
    blur = world.write_images(tmp_path / "blur", frames)
    (tmp_path / "spike").mkdir()
    spikes = world.make_spikes(frames, (32, 32))
    write_dat(tmp_path / "spike" / "long.dat", np.concatenate(spikes))
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", tmp_path / "spike", "--spikes-per-frame", 16,
        "--out", tmp_path / "out", "--checkpoint", checkpoint,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(world.read_images(tmp_path / "out"), frames)


def test_exposures_from_an_alignment_log(vrtspike, checkpoint, tmp_path):
    frames = world.make_frames(3, (64, 64))
    blur = world.write_images(tmp_path / "scene" / "blur", frames)
    spikes = world.make_spikes(frames, (32, 32))
    gap = np.zeros((4, 32, 32), np.uint8)
    write_dat(tmp_path / "long.dat", np.concatenate([x for s in spikes for x in (gap, s)]))
    rows = [f"{i},{(4 + 20 * i) / 1e4},{(4 + 20 * i + 15) / 1e4},0,scene" for i in range(3)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["frame_idx,t0,t1,event_count,seq", *rows]))
    out = tmp_path / "out"
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", tmp_path / "long.dat", "--alignment", log,
        "--steps-per-second", 10000, "--out", out, "--checkpoint", checkpoint,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads((out / "deblur.json").read_text())
    assert record["windows"] == [["long.dat", 4 + 20 * i, 16] for i in range(3)]


def test_a_model_without_a_spike_branch_takes_no_spikes(vrtspike, checkpoint, tmp_path):
    plain = world.write_checkpoint(tmp_path / "plain", spikes=False)
    frames = world.make_frames(6, (75, 64))
    blur = world.write_images(tmp_path / "blur", frames)
    out = tmp_path / "out"
    result = vrtspike("deblur", "--blur", blur, "--out", out, "--checkpoint", plain)
    assert result.exit_code == 0, result.output
    assert "no spikes" in result.stderr
    np.testing.assert_array_equal(world.read_images(out), frames)
    page = vrtspike("report", out, "--out", tmp_path / "page.html")
    assert page.exit_code == 0, page.output
    result = vrtspike("deblur", "--blur", blur, "--out", tmp_path / "b", "--checkpoint", checkpoint)
    assert result.exit_code == 2 and "--spikes is missing" in result.stderr


def test_a_half_done_folder_is_finished_and_a_finished_one_is_left_alone(
    vrtspike, tmp_path, monkeypatch
):
    checkpoint = world.write_checkpoint(tmp_path / "run", gain=0.5)
    blur, spikes, _ = world.write_sequence(tmp_path, 14, (64, 72))
    command = ["deblur", "--blur", blur, "--spikes", spikes, "--checkpoint", checkpoint]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert vrtspike(*command, "--out", whole).exit_code == 0
    assert vrtspike(*command, "--out", out).exit_code == 0
    # As an interruption would leave it: some frames and the record of a running job.
    record = json.loads((out / "deblur.json").read_text())
    (out / "deblur.json").write_text(json.dumps(record | {"state": "running"}))
    for index in (3, 9, 10, 11, 12, 13):
        (out / f"{index:08d}.png").unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    # The device has less memory now, which must not change the tiles.
    monkeypatch.setattr("vrtspike_jax.restoration.planning.memory_limit", lambda devices: 1.0)
    result = vrtspike(*command, "--out", out)
    assert result.exit_code == 0, result.output
    assert "(8 were there)" in result.stderr
    np.testing.assert_array_equal(world.read_images(out), world.read_images(whole))
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept

    again = vrtspike(*command, "--out", out)
    assert again.exit_code == 2 and "finished run" in again.stderr
    (out / "deblur.json").write_text(json.dumps(record | {"state": "running"}))
    other = vrtspike(*command, "--out", out, "--clip", 3)
    assert other.exit_code == 2 and "was begun with tiling" in other.stderr


def test_killed_in_the_middle_it_leaves_whole_frames_and_goes_on(checkpoint, tmp_path):
    blur, spikes, frames = world.write_sequence(tmp_path, 60, (128, 160))
    out = tmp_path / "out"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import world; "
        "world.register(); from vrtspike_jax.cli.app import main; main()"
    )
    command = [
        sys.executable, "-c", code, "deblur", "--blur", str(blur), "--spikes", str(spikes),
        "--out", str(out), "--checkpoint", str(checkpoint), "--tile", "64",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 5 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = sorted(out.glob("*.png"))
    assert 5 <= len(there) < 60, "the machine was too fast for this test"
    for file in there:
        world.cv2.imread(str(file)).shape  # noqa: B018 (every file that has a name is whole)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(world.read_images(out), frames)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads peak memory from /proc")
def test_memory_does_not_grow_with_the_number_of_frames(checkpoint, tmp_path):
    """Six times the frames, 130 MiB more of them, in the same memory, give or take."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import world; "
        "world.register(); from typer.testing import CliRunner; from vrtspike_jax.cli.app "
        "import app; result = CliRunner().invoke(app, sys.argv[1:]); assert not result.exit_code, "
        "result.output; print(open('/proc/self/status').read())"
    )
    size = (240, 320)
    frames = world.make_frames(3, size)
    spikes = world.make_spikes(frames, (120, 160), 8)
    peaks = {}
    for count in (24, 144):
        folder = tmp_path / str(count)
        blur = world.write_images(folder / "blur", frames[np.arange(count) % 3])
        dats = world.write_spikes(folder / "spike", spikes[np.arange(count) % 3])
        done = subprocess.run(
            [sys.executable, "-c", code, "deblur", "--blur", blur, "--spikes", dats, "--out",
             folder / "out", "--checkpoint", checkpoint, "--no-tile"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks[count] = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024
    frames_mib = 120 * size[0] * size[1] * 3 * 5 / 2**20  # uint8 in and float32 out
    assert frames_mib > 120
    assert peaks[144] - peaks[24] < frames_mib / 2, f"MiB at the peak: {peaks}"


def _mixed_sizes(blur, spikes, out):
    world.cv2.imwrite(str(blur / "00000001.png"), np.zeros((64, 72, 3), np.uint8))
    return "00000001.png: found 64 x 72 pixels of 8 bits, wanted 64 x 64"


def _mixed_depths(blur, spikes, out):
    world.cv2.imwrite(str(blur / "00000001.png"), np.zeros((64, 64, 3), np.uint16))
    return "found 64 x 64 pixels of 16 bits, wanted 64 x 64 pixels of 8 bits"


def _missing_spikes(blur, spikes, out):
    (spikes / "00000002.dat").unlink()
    return "no spikes for frame 00000002"


def _truncated_spikes(blur, spikes, out):
    file = spikes / "00000001.dat"
    file.write_bytes(file.read_bytes()[:-100])
    return "00000001.dat: found 1948 bytes"


def _truncated_image(blur, spikes, out):
    file = blur / "00000002.png"
    file.write_bytes(file.read_bytes()[:-100])
    return "00000002.png: the image is truncated"


def _no_image(blur, spikes, out):
    (blur / "00000000.png").write_bytes(b"not an image at all, whatever its name says")
    return "00000000.png: not a readable"


def _damaged_image(blur, spikes, out):
    # Right header and ending, so that only decoding finds out, after the run has begun.
    file = blur / "00000001.png"
    data = bytearray(file.read_bytes())
    data[200:400] = bytes(200)
    file.write_bytes(data)
    return "00000001.png: cannot be decoded"


def _full_output(blur, spikes, out):
    out.mkdir()
    (out / "holiday.txt").write_text("mine")
    return "holds files already; nothing is overwritten"


def _output_is_a_file(blur, spikes, out):
    out.write_text("mine")
    return "is no folder that can be written"


@pytest.mark.parametrize(
    "spoil",
    [
        _mixed_sizes,
        _mixed_depths,
        _missing_spikes,
        _truncated_spikes,
        _truncated_image,
        _no_image,
        _damaged_image,
        _full_output,
        _output_is_a_file,
    ],
)
def test_bad_input_is_one_line_and_code_2_and_leaves_nothing(vrtspike, checkpoint, tmp_path, spoil):
    blur, spikes, _ = world.write_sequence(tmp_path, 3, (64, 64))
    out = tmp_path / "out"
    message = spoil(blur, spikes, out)
    before = listing(tmp_path)
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", spikes, "--out", out, "--checkpoint", checkpoint
    )
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--checkpoint", "nowhere"], "no checkpoint found"),
        (["--tile", 32], "wanted at least 64"),
        (["--tile", 64, "--tile-overlap", 64], "wanted 0 <= overlap"),
        (["--tile", 64, "--no-tile"], "exclude each other"),
        (["--clip", 1], "clip of 1 frames: the model needs 2"),
        (["--frames", 9], "holds 3 frames, asked for 9"),
        (["--spike-size", "33x32"], "found 2048 bytes"),
        (["--spike-size", "tiny"], "wanted HEIGHTxWIDTH"),
        (["--out", "no/such/out.mp4"], "its folder does not exist"),
        (["--out", "out.webm"], "wanted a video that ends in"),
        (["--out", f"{__file__}/out"], "cannot be created in"),
        (["--bit-depth", 16, "--format", "jpg"], "JPEG holds 8 bits"),
        (["--json", "no/such/a.json"], "its folder does not exist"),
        (["--spikes-per-frame", 12], "found 16 steps, wanted the 12 of --spikes-per-frame"),
        (["--spike-start", 3], "holds one .dat a frame; --spike-start is for one long .dat"),
        (["--alignment", "log.csv"], "holds one .dat a frame; --alignment is for one long .dat"),
        (["--fps", -3, "--out", "{tmp}/out.mp4"], "--fps -3.0: wanted frames a second"),
        (["--bit-depth", 16, "--out", "{tmp}/out.mp4"], "a video holds 8 bits a channel"),
        (["--frames", 0], "asked for 0"),
        (["--clip-overlap", 5], "wanted 0 <= overlap < clip length"),
        (["--checkpoint", __file__], "no checkpoint found"),
        (["--blur", "nowhere"], "no such folder or video"),
        (["--spikes", "nowhere"], "no such folder or file of spikes"),
    ],
)
def test_bad_options_are_one_line_and_code_2(vrtspike, checkpoint, tmp_path, args, message):
    blur, spikes, _ = world.write_sequence(tmp_path, 3, (64, 64))
    before = listing(tmp_path)
    options = {"--blur": blur, "--spikes": spikes, "--out": tmp_path / "out"}
    options |= {"--checkpoint": checkpoint}
    flags = []
    for name, value in zip(args[::2], args[1::2], strict=False):
        options[name] = value.format(tmp=tmp_path) if isinstance(value, str) else value
    if len(args) % 2:
        flags.append(args[-1])
    result = vrtspike("deblur", *[x for pair in options.items() for x in pair], *flags)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert listing(tmp_path) == before


def test_without_a_checkpoint_the_small_model_sharpens(vrtspike, tmp_path, monkeypatch):
    monkeypatch.delenv("VRTSPIKE_CHECKPOINT", raising=False)
    clip = render_clip(11, 3, 64, 64, split="eval", blur=(8.0, 16.0))
    for name in ("blur", "spike"):
        (tmp_path / name).mkdir()
    for i, (frame, spikes) in enumerate(zip(clip["blur"], clip["spikes"], strict=True)):
        cv2.imwrite(str(tmp_path / "blur" / f"{i}.png"), frame[..., ::-1])
        write_dat(tmp_path / "spike" / f"{i}.dat", spikes)
    out = tmp_path / "out"
    result = vrtspike("deblur", "--blur", tmp_path / "blur", "--spikes", tmp_path / "spike",
                      "--out", out, "--no-tile")  # fmt: skip
    assert result.exit_code == 0, result.output
    restored = np.stack([cv2.imread(str(out / f"{i}.png"))[..., ::-1] for i in range(3)])
    assert psnr(restored, clip["sharp"]) > psnr(clip["blur"], clip["sharp"]) + 2


def test_a_damaged_checkpoint_is_named(vrtspike, tmp_path):
    run = world.write_checkpoint(tmp_path / "run")
    files = [p for p in (run / "checkpoints" / "7" / "params").rglob("*") if p.is_file()]
    victim = max(files, key=lambda p: p.stat().st_size)
    victim.write_bytes(b"\0" * victim.stat().st_size)
    blur, spikes, _ = world.write_sequence(tmp_path, 3, (64, 64))
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", spikes, "--out", tmp_path / "o", "--checkpoint", run
    )
    assert result.exit_code == 2 and str(victim) in result.stderr
    assert not (tmp_path / "o").exists()


def test_a_video_that_ends_early_leaves_nothing(vrtspike, checkpoint, tmp_path):
    frames = world.make_frames(12, (64, 64))
    video = world.write_video(tmp_path / "blur.mkv", frames)
    spikes = world.write_spikes(tmp_path / "spike", world.make_spikes(frames, (32, 32)))
    data = video.read_bytes()
    video.write_bytes(data[: int(len(data) * 0.6)])
    before = listing(tmp_path)
    for out in ("out", "out.mp4"):
        result = vrtspike(
            "deblur", "--blur", video, "--spikes", spikes, "--out", tmp_path / out,
            "--checkpoint", checkpoint,
        )  # fmt: skip
        assert result.exit_code == 2, result.output
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "blur.mkv" in errors[0]
        assert listing(tmp_path) == before


def test_an_existing_video_is_not_overwritten(vrtspike, checkpoint, tmp_path):
    blur, spikes, _ = world.write_sequence(tmp_path, 3, (64, 64))
    out = tmp_path / "mine.mp4"
    out.write_bytes(b"holiday")
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", spikes, "--out", out, "--checkpoint", checkpoint
    )
    assert result.exit_code == 2 and "nothing is overwritten" in result.stderr
    assert out.read_bytes() == b"holiday"
