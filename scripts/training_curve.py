"""Draws a run's training curve and keeps its log as a small table.

    python scripts/training_curve.py runs/base/metrics.jsonl --csv docs/curves/base.csv \
        --out docs/pictures/base_curve.svg --every 250

The line is the PSNR of training clips, its mean over `--every` steps; dots are held-out clips. The
table has the same rows: step, loss, PSNR, learning rate, seconds a step, held-out PSNR and SSIM.
"""

import argparse
import csv
import json
import pathlib

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 20, 20, 50
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
        args.out.write_text(_drawing(rows))


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


def _drawing(rows: list[dict[str, float]]) -> str:
    line = [(row["step"], row["psnr"]) for row in rows]
    dots = [(row["step"], row["eval_psnr_rgb"]) for row in rows if "eval_psnr_rgb" in row]
    values = [value for _, value in line + dots]
    low, high = int(min(values)), int(max(values)) + 1
    last = rows[-1]["step"]

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="#fff"/>'
    ]
    for value in range(low, high + 1):
        x, y = place(0, value)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for quarter in range(5):
        x, _ = place(last * quarter / 4, low)
        label = f"{last * quarter // 4:,}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 30}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    parts.append('<text x="4" y="14">PSNR, dB</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#0072b2" stroke-width="1.5"/>')
    for x, y in (place(*point) for point in dots):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#d55e00"/>')
    for i, (name, color) in enumerate(
        (("training clips", "#0072b2"), ("held-out clips", "#d55e00"))
    ):
        y = HEIGHT - BOTTOM - 36 + 18 * i
        parts.append(f'<circle cx="{WIDTH - 140}" cy="{y - 4}" r="5" fill="{color}"/>')
        parts.append(f'<text x="{WIDTH - 128}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
