"""How long `vrtspike deblur` takes beside the model alone: reading, blending, writing.

    python scripts/deblur_overhead.py --config configs/baseline.py --size 720x1280 --frames 60

Makes a sequence of PNG files and one .dat a frame, restores it to PNG with random weights, and
compares the wall time with that of the compiled model on as many batches, one after the other.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import cv2
import jax
import numpy as np
import skimage.data

from vrtspike_jax.benchmark import random_params
from vrtspike_jax.cli.configs import load_config
from vrtspike_jax.cli.console import parse_size
from vrtspike_jax.models.build import build_model
from vrtspike_jax.restoration import deblur
from vrtspike_jax.restoration.clips import plan_clips
from vrtspike_jax.restoration.exposures import open_exposures
from vrtspike_jax.restoration.frames import FolderFrames
from vrtspike_jax.restoration.restorer import Plan, Restorer, from_model
from vrtspike_jax.spikes import write_dat


def main() -> None:
    """Prints the comparison, and writes it as JSON if asked."""
    args = _arguments()
    config = load_config(args.config, args.set)
    size = parse_size(args.size)
    spike_size = tuple(round(s * k) for s, k in zip(size, config.data.spike_scale, strict=True))
    model = build_model(config.model)
    shape = (1, config.data.clip_length, 64, 64)
    arrays = {"blur": np.zeros((*shape, 3)), "spikes": np.zeros((*shape, config.data.voxel.bins))}
    restorer = from_model(model, random_params(model, arrays), config, name="random weights")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        _write_sequence(root, args.frames, size, spike_size, args.steps)
        frames = FolderFrames(root / "blur")
        exposures = open_exposures(root / "spike", frames.names, frames.path, spike_size)
        tile = deblur.WHOLE if args.tile == "whole" else args.tile and int(args.tile)
        tiling = deblur.Tiling(tile=tile or None)
        summary = deblur.run(
            restorer, frames, exposures, deblur.Output(root / "out"), tiling, notify=print
        )
    plan = restorer.plan(size, spike_size, tile=tiling.tile)
    calls, seconds = _model_alone(restorer, plan, args.frames)
    result = {
        "device": jax.local_devices()[0].device_kind,
        "frames": args.frames,
        "size": size,
        "tiles": summary.tiles,
        "calls": calls,
        "deblur_seconds": summary.seconds,
        "model_seconds": seconds,
        "overhead": summary.seconds / seconds - 1,
        "frames_per_second": summary.frames_per_second,
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/baseline.py", help="config file")
    parser.add_argument("--set", action="append", help="override, key=value")
    parser.add_argument("--size", default="720x1280", help="HEIGHTxWIDTH of the frames")
    parser.add_argument("--frames", type=int, default=60, help="frames in the sequence")
    parser.add_argument("--steps", type=int, default=88, help="spike steps of an exposure")
    parser.add_argument("--tile", default="", help="side of tiles, or `whole`; else what fits")
    parser.add_argument("--json", type=pathlib.Path, help="write the result here")
    return parser.parse_args()


def _write_sequence(root: pathlib.Path, count: int, size, spike_size, steps: int) -> None:
    """A photograph that moves, with camera noise, and spikes at random."""
    (root / "blur").mkdir()
    (root / "spike").mkdir()
    photograph = cv2.resize(skimage.data.astronaut(), (size[1] + 64, size[0] + 64))
    rng = np.random.default_rng(0)
    for index in range(count):
        shift = index % 64
        frame = photograph[shift : shift + size[0], shift : shift + size[1], ::-1].astype(int)
        frame = np.clip(frame + rng.integers(-3, 4, frame.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / "blur" / f"{index:08d}.png"), frame)
        spikes = (rng.random((steps, *spike_size), np.float32) < 0.4).astype(np.uint8)
        write_dat(root / "spike" / f"{index:08d}.dat", spikes)


def _model_alone(restorer: Restorer, plan: Plan, num_frames: int) -> tuple[int, float]:
    """Number of calls that the sequence takes, and their time one after the other."""
    grid, batch, length = plan.grid, plan.batch_size, plan.clip_length
    frames = np.zeros((batch, length, grid.rows.tile, grid.cols.tile, 3), np.uint8)
    spike_tile = (grid.rows.spike_tile, grid.cols.spike_tile)
    voxels = np.zeros((batch, length, *spike_tile, restorer.voxels.bins), np.uint8)
    inputs = jax.device_put((frames, voxels))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(plan.apply(*inputs))
        times.append(time.perf_counter() - start)
    clips = len(plan_clips(num_frames, length, plan.clip_overlap))
    calls = -(-clips * len(grid.tiles) // batch)
    return calls, calls * statistics.median(times[1:])


if __name__ == "__main__":
    main()
