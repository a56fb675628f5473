"""Turns a spike recording into pictures: TFP, TFI, voxel bins, and the firing rate over time.

    python scripts/spike_pictures.py recording.dat --height 250 --width 400 --out pictures

Without a size, a SpikeCV-style `config.yaml` beside the recording is used, or else the likeliest
size is guessed from the bits. With `--sharp` the pictures are also compared with a sharp frame.
"""

import argparse
import pathlib
import sys

import cv2
import numpy as np

from vrtspike_jax.spikes import (
    DatFile,
    find_camera_config,
    plausible_sizes,
    tfi,
    tfp,
    voxelize,
)


def main() -> int:
    """Reads the arguments, draws, and returns the exit code."""
    args = _arguments()
    try:
        return _run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    recording = _open(args)
    moment = recording.num_frames // 2 if args.moment is None else args.moment
    # Intervals of dark pixels reach far, so take more steps than the exposure on both sides.
    first = max(0, moment - 4 * args.exposure)
    count = min(recording.num_frames, moment + 4 * args.exposure) - first
    spikes = recording.read(first, count)
    centre = moment - first
    start = max(0, centre - args.exposure // 2)
    exposure = spikes[start : start + args.exposure]
    pictures = {
        "tfp": tfp(spikes, centre, args.window, args.threshold),
        "tfp_exposure": tfp(exposure, threshold=args.threshold),
        "tfi": tfi(spikes, centre, args.threshold),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    print(
        f"{recording.path}: {recording.num_frames} steps of {recording.height} x "
        f"{recording.width}, {spikes.mean():.4f} spikes a pixel and step around step {moment}"
    )
    for name, picture in pictures.items():
        _save(args.out / f"{name}.png", picture)
    grid = voxelize(exposure, args.bins)
    _save(args.out / "voxels.png", _mosaic(grid))
    counts = grid.reshape(-1, args.bins).mean(axis=0)
    print("mean log(1 + count) of each bin:", " ".join(f"{c:.3f}" for c in counts))
    if args.sharp:
        _compare(pictures, args.sharp)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", type=pathlib.Path, help="a .dat file")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the pictures")
    parser.add_argument("--height", type=int, help="pixels of the picture")
    parser.add_argument("--width", type=int, help="pixels of the picture, without head columns")
    parser.add_argument("--head-columns", type=int, default=0, help="extra columns of each row")
    parser.add_argument("--moment", type=int, help="step to look at; default: the middle")
    parser.add_argument("--window", type=int, default=21, help="steps of the TFP window")
    parser.add_argument("--exposure", type=int, default=88, help="steps of one exposure")
    parser.add_argument("--bins", type=int, default=8, help="voxel bins of the exposure")
    parser.add_argument(
        "--threshold", type=float, default=1.0, help="firing threshold, units of white x steps"
    )
    parser.add_argument("--sharp", type=pathlib.Path, help="sharp picture at the moment")
    return parser.parse_args()


def _open(args: argparse.Namespace) -> DatFile:
    if (args.height is None) != (args.width is None):
        raise ValueError("found only one of --height and --width, wanted both or none")
    if args.height is not None:
        return DatFile(args.recording, args.height, args.width, args.head_columns)
    config = find_camera_config(args.recording)
    if config is not None:
        return DatFile(args.recording, config.height, config.width, config.head_columns)
    guesses = plausible_sizes(args.recording)
    if not guesses:
        raise ValueError(f"{args.recording}: no sensible size fits; give --height and --width")
    best = guesses[0]
    print(f"no size given: guessed {best.height} x {best.width} (score {best.score:.2f})")
    return DatFile(args.recording, best.height, best.width, best.head_columns)


def _mosaic(grid: np.ndarray) -> np.ndarray:
    """Bins [H, W, K] side by side, four in a row, scaled to 0..1."""
    height, width, bins = grid.shape
    columns = min(4, bins)
    rows = -(-bins // columns)
    sheet = np.zeros((rows * height, columns * width), np.float32)
    for k in range(bins):
        y, x = (k // columns) * height, (k % columns) * width
        sheet[y : y + height, x : x + width] = grid[..., k]
    return sheet / max(float(sheet.max()), 1e-9)


def _save(path: pathlib.Path, picture: np.ndarray) -> None:
    data = cv2.imencode(".png", np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8))[1]
    path.write_bytes(data.tobytes())
    print(f"wrote {path}")


def _compare(pictures: dict[str, np.ndarray], sharp: pathlib.Path) -> None:
    reference = cv2.imread(str(sharp), cv2.IMREAD_GRAYSCALE)
    if reference is None:
        raise ValueError(f"{sharp}: found no readable picture")
    for name, picture in pictures.items():
        if reference.shape != picture.shape:
            raise ValueError(f"{sharp}: found {reference.shape}, wanted {picture.shape}")
        correlation = np.corrcoef(picture.ravel(), reference.ravel())[0, 1]
        print(f"correlation with the sharp picture, {name}: {correlation:.4f}")


if __name__ == "__main__":
    sys.exit(main())
