"""Photographs and films for rendered training clips, in folders apart for training and scoring.

    python scripts/gather_media.py --photographs BSDS500/images --videos clips --out media \
        --eval-photographs 30 --eval-videos ct_bear pp_test1

Writes `<out>/{train,eval}/photographs`, copies; `<out>/{train,eval}/films`, a .npy of
each video, with frames interpolated if asked for, and shrunk; and `<out>/eval/videos`, the held-out
videos as they are. Configs name the folders in `config.data.scenes.render`. Held-out photographs
are every n-th in order of name.
"""

import argparse
import pathlib
import shutil

import cv2
import numpy as np

from vrtspike_jax.restoration.video import VIDEO_SUFFIXES, VideoFrames
from vrtspike_jax.scenes.interpolate import InterpolatedFrames
from vrtspike_jax.scenes.photographs import SUFFIXES


def main() -> None:
    """Copies the photographs and shrinks the videos."""
    args = _arguments()
    for split in ("train", "eval"):
        for kind in ("photographs", "films"):
            (args.out / split / kind).mkdir(parents=True, exist_ok=True)
    (args.out / "eval" / "videos").mkdir(exist_ok=True)
    if args.photographs:
        paths = _files(args.photographs, SUFFIXES)
        count = min(args.eval_photographs, len(paths))
        held_out = {i * len(paths) // count for i in range(count)} if count else set()
        for i, path in enumerate(paths):
            split = "eval" if i in held_out else "train"
            shutil.copyfile(path, args.out / split / "photographs" / path.name)
        print(f"{len(paths)} photographs, {len(held_out)} of them held out")
    videos = _files(args.videos, VIDEO_SUFFIXES) if args.videos else []
    unknown = sorted(set(args.eval_videos) - {path.stem for path in videos})
    if unknown:
        raise SystemExit(f"{args.videos}: found no video called {unknown[0]}")
    for path in videos:
        split = "eval" if path.stem in args.eval_videos else "train"
        if split == "eval":
            shutil.copyfile(path, args.out / split / "videos" / path.name)
        film = _film(path, args.interpolate, args.shrink, args.least_side)
        np.save(args.out / split / "films" / f"{path.stem}.npy", film)
        print(f"{path.stem}: {split}, {len(film)} frames of {film.shape[1]} x {film.shape[2]}")


def _files(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    if not paths:
        raise SystemExit(f"{folder}: found no file that ends in {', '.join(suffixes)}")
    return paths


def _film(path: pathlib.Path, times: int, factor: float, least_side: int) -> np.ndarray:
    video = VideoFrames(path)
    # A video that is too small stays as it is: it must not grow.
    factor = max(1.0, min(factor, min(video.size) / least_side))
    height, width = (round(side / factor) for side in video.size)
    frames = InterpolatedFrames(video, times)
    film = np.empty((len(frames), height, width, 3), np.uint8)
    for i in range(len(frames)):
        film[i] = cv2.resize(frames.read(i), (width, height), interpolation=cv2.INTER_AREA)
    video.close()
    return film


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=pathlib.Path, help="folder of photographs")
    parser.add_argument("--videos", type=pathlib.Path, help="folder of videos")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--shrink", type=float, default=2.0, help="divides the videos' sides")
    parser.add_argument(
        "--interpolate", type=int, default=1, help="makes so many frames of each, by optical flow"
    )
    parser.add_argument(
        "--least-side", type=int, default=1, help="shrink small videos less, to sides of so many"
    )
    parser.add_argument("--eval-photographs", type=int, default=30, help="how many to hold out")
    parser.add_argument("--eval-videos", nargs="*", default=[], help="names of those to hold out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
