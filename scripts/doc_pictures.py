"""Makes the pictures of `docs/` with the commands that they are about.

    python scripts/doc_pictures.py --out docs/pictures

A moving scene of two photographs that scikit-image ships becomes a video; `simulate` turns it into
blurred frames and spikes, `inspect` looks at these, `deblur` and `evaluate` restore them, and a
headless Chromium (if there is one) photographs the page that `report` writes.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

import cv2
import numpy as np
import skimage.data

from vrtspike_jax.weights import SMALL

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE = (240, 352)


def main() -> None:
    """Runs the commands in a temporary folder and keeps the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, default=SMALL, help="trained model")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder).resolve()
        _write_video(work / "scene", 11 * 7)
        _run("simulate", "--video", work / "scene", "--out", work / "set", "--substeps", 8)
        sequence = work / "set" / "test" / "scene"
        spikes = sequence / "spike"
        first = spikes / "00000003.dat"
        _run("inspect", first, "--out", work / "look", "--window", 16)
        copy = shutil.copytree if args.checkpoint.is_dir() else shutil.copy
        (work / "runs").mkdir()
        checkpoint = ("--checkpoint", copy(args.checkpoint, work / "runs" / args.checkpoint.name))
        _run("evaluate", "--data", work / "set", "--out", work / "scores", *checkpoint)
        # The page names files by their full paths, which shall not be those of this machine.
        metrics = work / "scores" / "metrics.json"
        metrics.write_text(metrics.read_text().replace(f"{work}/", ""))
        page = work / "report.html"
        _run("report", work / "scores", "--out", page, "--title", "A moving scene, seven frames")
        _run("deblur", "--blur", sequence / "blur", "--spikes", spikes, "--out", work / "restored",
             *checkpoint)  # fmt: skip
        _save_simulated(sequence, work / "look", args.out / "simulate.jpg")
        _save_restored(sequence, work / "restored", args.out / "deblur.jpg")
        shutil.copy(work / "look" / "tfp.png", args.out / "inspect_tfp.png")
        shutil.copy(work / "look" / "tfi.png", args.out / "inspect_tfi.png")
        _photograph(page, args.out)
    total = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {total / 2**10:.0f} KiB")


def _run(*command) -> None:
    print("$ vrtspike", *command, flush=True)
    subprocess.run([sys.executable, "-m", "vrtspike_jax.cli.app", *map(str, command)], check=True)


def _write_video(folder: pathlib.Path, count: int) -> None:
    """A pan over one photograph while a part of another crosses it, one to four pixels a frame."""
    folder.mkdir()
    back = skimage.data.coffee()  # both photographs are kept from training
    front = cv2.resize(skimage.data.chelsea()[20:260, 80:380], (150, 120))
    y, x = np.mgrid[:120, :150]
    mask = (((y - 60) / 55) ** 2 + ((x - 75) / 70) ** 2 < 1).astype(np.float32)
    mask = cv2.GaussianBlur(mask, (0, 0), 1)[..., None]
    for i in range(count):
        shift = np.float32([[1, 0, -60 - 1.4 * i], [0, 1, -40 - 12 * np.sin(i / 9)]])
        frame = cv2.warpAffine(back, shift, SIZE[::-1], flags=cv2.INTER_LINEAR).astype(np.float32)
        place = np.float32([[1, 0, 230 - 2.2 * i], [0, 1, 124 + 10 * np.sin(i / 7)]])
        over = cv2.warpAffine(front, place, SIZE[::-1]).astype(np.float32)
        share = cv2.warpAffine(mask, place, SIZE[::-1])[..., None]
        frame += share * (over - frame)
        cv2.imwrite(str(folder / f"{i:05d}.png"), np.rint(frame[..., ::-1]))


def _save_simulated(sequence: pathlib.Path, look: pathlib.Path, path: pathlib.Path) -> None:
    pictures = [cv2.imread(str(sequence / part / "00000003.png")) for part in ("blur", "sharp")]
    spikes = cv2.imread(str(look / "tfp.png"))
    pictures.append(cv2.resize(spikes, SIZE[::-1], interpolation=cv2.INTER_NEAREST))
    cv2.imwrite(str(path), np.concatenate(pictures, 1), [cv2.IMWRITE_JPEG_QUALITY, 88])


def _save_restored(sequence: pathlib.Path, restored: pathlib.Path, path: pathlib.Path) -> None:
    folders = (sequence / "blur", restored, sequence / "sharp")
    pictures = [cv2.imread(str(folder / "00000003.png")) for folder in folders]
    cv2.imwrite(str(path), np.concatenate(pictures, 1), [cv2.IMWRITE_JPEG_QUALITY, 88])


def _photograph(page: pathlib.Path, out: pathlib.Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "cli"))
    import browser

    if browser.find() is None:
        print("no Chromium: the pictures of the report stay as they are")
        return
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        browser.Browser(pathlib.Path(profile)) as window,
    ):
        window.call("Emulation.setScrollbarsHidden", hidden=True)
        for name, width, height in (("report", 1000, 1180), ("report_phone", 390, 844)):
            window.open(page, width, height, mobile=width < 500)
            top = "document.querySelector('.clip h2').getBoundingClientRect().top"
            window.run(f"window.scrollBy(0, {top if width < 500 else 0})")
            data = np.frombuffer(window.screenshot(), np.uint8)
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
            cv2.imwrite(str(out / f"{name}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
