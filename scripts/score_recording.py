"""Scores a model on a long spike recording of which one sharp frame is known.

    python scripts/score_recording.py RECORDING.dat SHARP.png --step 151 [--checkpoint runs/small]

Spike-Zoo's samples are such pairs. There is no blurred frame, so one is made of the spikes: the
average of an exposure around the step of the sharp frame, in gray, as bright as that frame. The
exposures before and after come along as far as the recording goes. Prints PSNR and SSIM of gray,
rounded to 8 bit: blurred, TFP in windows of several lengths, and restored.
"""

import argparse
import json
import pathlib

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

import vrtspike_jax
from vrtspike_jax import weights
from vrtspike_jax.metrics import psnr, ssim
from vrtspike_jax.spikes import read_dat

WINDOWS = (9, 15, 21, 31, 41)


def main() -> None:
    """Prints the table."""
    args = _arguments()
    sharp = cv2.imread(str(args.sharp), cv2.IMREAD_GRAYSCALE)
    if sharp is None:
        raise SystemExit(f"{args.sharp}: no readable image")
    sharp = sharp.astype(np.float32) / 255
    spikes = read_dat(args.recording, *sharp.shape)
    starts, middle = _exposures(len(spikes), args.step, args.steps)
    exposures = [spikes[start : start + args.steps] for start in starts]
    gain = _gain(exposures[middle].mean(axis=0), sharp)
    blurred = np.stack([_rounded(gain * e.mean(axis=0)) for e in exposures])
    restorer = vrtspike_jax.load(args.checkpoint)
    restored = restorer.restore(np.repeat(blurred[..., None], 3, axis=-1), exposures)[middle]
    pictures = {"blurred": blurred[middle]}
    for window in WINDOWS:
        average = spikes[args.step - window // 2 :][:window].mean(axis=0)
        pictures[f"TFP of {window} steps"] = _gain(average, sharp) * average
    pictures["restored"] = restored.mean(axis=-1)
    table, scores = Table("picture", "PSNR (dB)", "SSIM"), {}
    for name, picture in pictures.items():
        found = [measure(picture, sharp, as_uint8=True) for measure in (psnr, ssim)]
        scores[name] = dict(zip(("psnr", "ssim"), found, strict=True))
        table.add_row(name, f"{found[0]:.2f}", f"{found[1]:.4f}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2) + "\n")
    if args.picture:
        row = [_rounded(pictures[name]) for name in ("blurred", "restored")] + [sharp]
        cv2.imwrite(str(args.picture), np.round(255 * np.hstack(row)).astype(np.uint8))


def _exposures(count: int, step: int, steps: int) -> tuple[list[int], int]:
    """Where exposures start, and which of them has `step` in its middle."""
    first = step - steps // 2
    if first < 0 or first + steps > count:
        raise SystemExit(
            f"found {count} steps: no room for an exposure of {steps} around step {step}"
        )
    before = first // steps
    starts = list(range(first - before * steps, count - steps + 1, steps))
    return starts, before


def _gain(light: np.ndarray, sharp: np.ndarray) -> float:
    """What brings a reconstruction to the brightness of the sharp frame, by least squares."""
    return float((light * sharp).sum() / (light * light).sum())


def _rounded(picture: np.ndarray) -> np.ndarray:
    return (np.round(np.clip(picture, 0, 1) * 255) / 255).astype(np.float32)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", type=pathlib.Path, help="spikes of the sharp frame's size")
    parser.add_argument("sharp", type=pathlib.Path, help="the sharp frame")
    parser.add_argument("--step", type=int, required=True, help="the sharp frame's step")
    parser.add_argument("--steps", type=int, default=88, help="spike steps of an exposure")
    parser.add_argument("--checkpoint", type=pathlib.Path, default=weights.SMALL)
    parser.add_argument("--json", type=pathlib.Path, help="write the scores here")
    parser.add_argument(
        "--picture", type=pathlib.Path, help="write blurred | restored | sharp here"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
