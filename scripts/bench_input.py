"""Measures the input pipeline: clips a second, and where the time of a clip goes.

Makes a data set of 720 x 1280 frames with 88 spike steps of 360 x 640 an exposure in a temporary
folder (photographs with noise, so that PNG files are as large as GoPro's), prepares it as well, and
reads random crops of both as training does:

    python scripts/bench_input.py --cores=2

On a machine that does other work, the column "clips/s, cores idle" says what the CPU time that a
clip took would give if the cores had nothing else to do.
"""

import multiprocessing
import os
import pathlib
import tempfile
import time

import cv2
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from vrtspike_jax.data import images
from vrtspike_jax.data.augment import View
from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.data.geometry import draw_crop
from vrtspike_jax.data.layouts import LayoutOptions, find_sequences
from vrtspike_jax.data.paths import Root
from vrtspike_jax.data.pipeline import open_frames, train_iterator
from vrtspike_jax.data.prepare import prepare
from vrtspike_jax.data.verify import VerifyOptions, verify_sequences
from vrtspike_jax.spikes import read_dat, write_dat

FLAGS = flags.FLAGS
flags.DEFINE_integer("cores", 2, "CPU cores to use (Linux); 0 uses all.")
flags.DEFINE_float("seconds", 15.0, "Time to measure each row.")
flags.DEFINE_list("sources", ["plain", "tfds"], "Kinds of data set to read.")
flags.DEFINE_list("workers", ["0", "2"], "Numbers of worker processes to try.")
flags.DEFINE_integer("clip_length", 5, "Frames a clip.")
flags.DEFINE_integer("crop_size", 256, "Side of the crop in frame pixels; 0 reads whole frames.")
flags.DEFINE_integer("batch_size", 1, "Clips a batch.")

HEIGHT, WIDTH, STEPS = 720, 1280, 88
SEQUENCES, FRAMES = 2, 10
STAGE_CLIPS = 20


def main(argv: list[str]) -> None:
    """Makes the sets, measures and prints."""
    del argv
    cores = FLAGS.cores or os.cpu_count() or 1
    if hasattr(os, "sched_setaffinity"):
        # Worker processes inherit it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "files"
        write_set(root)
        configs = {"plain": make_config("plain", root)}
        if "tfds" in FLAGS.sources:
            report = prepare("svrt", root, pathlib.Path(folder) / "prepared")
            configs["tfds"] = make_config("tfds", report.folder)
        console = Console()
        console.print(
            f"{FLAGS.clip_length} frames of {HEIGHT} x {WIDTH}, {STEPS} steps of "
            f"{HEIGHT // 2} x {WIDTH // 2}, crops of {FLAGS.crop_size}, {cores} cores"
        )
        console.print(rate_table({name: configs[name] for name in FLAGS.sources}, cores))
        console.print(stage_table(configs))


def write_set(root: pathlib.Path) -> None:
    """Writes `SEQUENCES` sequences of `FRAMES` frames in the plain layout."""
    from skimage import data

    rng = np.random.default_rng(0)
    side = WIDTH + 200
    photograph = cv2.resize(data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)
    for s in range(SEQUENCES):
        folder = root / "train" / f"sequence_{s}"
        for part in ("blur", "sharp", "spike"):
            (folder / part).mkdir(parents=True)
        for i in range(FRAMES):
            sharp = photograph[300 * s + 9 * i :, 11 * i :][:HEIGHT, :WIDTH].astype(np.float32)
            for part, image, noise in (("sharp", sharp, 2), ("blur", cv2.blur(sharp, (9, 1)), 1)):
                noisy = np.clip(image + rng.normal(0, noise, image.shape), 0, 255)
                path = str(folder / part / f"{i:08d}.png")
                cv2.imwrite(
                    path, noisy[..., ::-1].astype(np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 6]
                )
            gray = cv2.resize(sharp[..., 1], (WIDTH // 2, HEIGHT // 2)) / 255
            spikes = rng.random((STEPS, HEIGHT // 2, WIDTH // 2), np.float32) < gray
            write_dat(folder / "spike" / f"{i:08d}.dat", spikes)


def make_config(source: str, root: pathlib.Path):
    """The default settings of the data pipeline for a folder."""
    config = default_data_config()
    config.source, config.root = source, str(root)
    config.clip_length = FLAGS.clip_length
    config.crop_size = FLAGS.crop_size
    config.batch_size = FLAGS.batch_size
    config.rotate = bool(FLAGS.crop_size)
    return config


def rate_table(configs, cores: int) -> Table:
    """Clips a second of the whole pipeline, for each source and number of workers."""
    table = Table(title="whole pipeline")
    for name in ("source", "workers", "clips/s", "CPU ms/clip", "clips/s, cores idle"):
        table.add_column(name, justify="right")
    for name, config in configs.items():
        for workers in map(int, FLAGS.workers):
            config.num_workers = workers
            rate, cpu = measure_rate(config)
            table.add_row(
                name, str(workers), f"{rate:.1f}", f"{cpu * 1e3:.0f}", f"{cores / cpu:.1f}"
            )
    return table


def measure_rate(config) -> tuple[float, float]:
    """(clips a second, CPU seconds a clip)."""
    iterator = train_iterator(config, seed=0)
    for _ in range(2 * (config.num_workers + 1) * config.prefetch_batches):
        next(iterator)
    start, used, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - start < FLAGS.seconds:
        next(iterator)
        count += config.batch_size
    rate, used = count / (time.perf_counter() - start), cpu_seconds() - used
    iterator.close()
    return rate, used / count


def cpu_seconds() -> float:
    """CPU time so far, of this process and its workers."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        # Fields 14 and 15 of proc(5): user and system time, in clock ticks.
        fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def stage_table(configs) -> Table:
    """CPU time of each stage of a clip, one after the other."""
    table = Table(title="CPU ms a clip, stage by stage")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    stages = file_stages(configs["plain"])
    if "tfds" in configs:
        stages["prepared set: records, tiles and spikes"] = store_stage(configs["tfds"])
    for name, seconds in stages.items():
        table.add_row(name, f"{seconds / STAGE_CLIPS * 1e3:.1f}")
    return table


def file_stages(config) -> dict[str, float]:
    """CPU seconds of `STAGE_CLIPS` clips in each stage of the plain layout."""
    found = find_sequences(Root(config.root), "train", LayoutOptions())
    sequence = verify_sequences(found, VerifyOptions())[0]
    files, geometry = sequence.files, sequence.geometry
    rng = np.random.default_rng(0)
    totals: dict[str, float] = {}

    def timed(name, function, *args, **kwargs):
        # Of the process and not the thread: libvips decodes in one of its own.
        start = time.process_time()
        result = function(*args, **kwargs)
        totals[name] = totals.get(name, 0.0) + time.process_time() - start
        return result

    for _ in range(STAGE_CLIPS):
        crop = draw_crop(geometry, config.crop_size, rng)
        frames, spikes = [], []
        for i in range(config.clip_length):
            for group in (files.blur, files.sharp):
                data = timed("files: read PNG", images.read_bytes, group.path(i))
                args = (data, geometry.frame, group.path(i), crop.rows, crop.cols)
                frames.append(timed("files: decode PNG crop", images.decode, *args))
            window = {"rows": crop.spike_rows, "cols": crop.spike_cols}
            args = (sequence.spike_path(i), *geometry.spike)
            spikes.append(timed("files: read and unpack .dat crop", read_dat, *args, **window))
        arrays = timed("both: stack", lambda f, s: (np.stack(f), np.stack(s)), frames, spikes)
        view = View(reverse=True, mirror_cols=True, turn=True)
        args = (arrays[0][::2], arrays[0][1::2], arrays[1], config.voxel.bins)
        timed("both: turn and count voxels", view.apply, *args)
    return totals


def store_stage(config) -> float:
    """CPU seconds of reading `STAGE_CLIPS` clips from the prepared set."""
    store = open_frames(config, "train")
    rng = np.random.default_rng(0)
    start = time.process_time()
    for _ in range(STAGE_CLIPS):
        crop = draw_crop(store.geometry(0), config.crop_size, rng)
        for i in range(config.clip_length):
            store.read(0, i, crop)
    return time.process_time() - start


if __name__ == "__main__":
    app.run(main)
