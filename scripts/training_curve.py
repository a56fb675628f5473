"""Draws a run's training curve and keeps its log as a small table.

    python scripts/training_curve.py runs/base/metrics.jsonl --csv docs/curves/base.csv \
        --out docs/pictures/base_curve.svg --every 250

The green line is the PSNR of training clips, its mean over `--every` steps; the other is that of
held-out clips. The table has the same rows: step, loss, PSNR, learning rate, seconds a step,
held-out PSNR and SSIM.
"""

import argparse
import csv
import json
import math
import pathlib

from vrtspike_jax.report.charts import line_chart, picture

TRAIN = ("loss", "psnr", "learning_rate", "step_seconds")
HELD_OUT = ("eval_psnr_rgb", "eval_psnr_y", "eval_ssim_y", "eval_blurred_psnr_rgb")


def main() -> None:
    """Reads the log, writes what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=pathlib.Path, help="metrics.jsonl of a run")
    parser.add_argument("--every", type=int, default=250, help="steps that a row sums up")
    parser.add_argument("--csv", type=pathlib.Path, help="table to write")
    parser.add_argument("--out", type=pathlib.Path, help="picture to write (.svg)")
    args = parser.parse_args()
    rows = _rows([json.loads(line) for line in args.log.read_text().splitlines()], args.every)
    if not rows:
        raise SystemExit(f"{args.log}: found no training steps")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            table = csv.DictWriter(file, ("step", *TRAIN, *HELD_OUT), lineterminator="\n")
            table.writeheader()
            table.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
    if args.out:
        args.out.write_text(_drawing(rows, args.every))


def _rows(log: list[dict[str, float]], every: int) -> list[dict[str, float]]:
    """The means of every so many steps, with the scores of held-out clips taken in them."""
    windows: dict[int, list[dict[str, float]]] = {}
    for entry in log:
        windows.setdefault(-(-entry["step"] // every) * every, []).append(entry)
    rows = []
    for step, entries in sorted(windows.items()):
        row: dict[str, float] = {"step": step}
        for key in (*TRAIN, *HELD_OUT):
            values = [entry[key] for entry in entries if key in entry]
            if values:
                row[key] = sum(values) / len(values)
        rows.append(row)
    return [row for row in rows if "psnr" in row]


def _drawing(rows: list[dict[str, float]], every: int) -> str:
    at = {row["step"] // every: row for row in rows}
    keys = {"spikes": "psnr", "restored": "eval_psnr_rgb"}  # green and vermilion
    lines = {
        style: [at.get(i, {}).get(key, math.nan) for i in range(max(at) + 1)]
        for style, key in keys.items()
    }
    labels = {"spikes": "training clips", "restored": "held-out clips"}
    return picture(line_chart(lines, labels, "PSNR of clips", f"{every} steps", "PSNR, dB")) + "\n"


if __name__ == "__main__":
    main()
