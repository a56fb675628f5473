"""Scores a model on rendered clips and films that it never saw, with usual and unusual cameras.

    python scripts/score_weights.py --media media --clips 64 [--checkpoint runs/small] [--json FILE]

`media` is what `scripts/gather_media.py` wrote; without it, the pictures of scikit-image do. Prints
PSNR of RGB, in dB: blurred, TFP, restored, and how many frames became worse than they were.
"""

import argparse
import json
import pathlib

import ml_collections
from rich.console import Console
from rich.table import Table

from vrtspike_jax import weights
from vrtspike_jax.data.pipeline import eval_clips
from vrtspike_jax.evaluation import Evaluation, evaluate
from vrtspike_jax.restoration.restorer import WHOLE, Restorer, load_with_config

# Changes of `config.data.scenes.render`, and of these fields of `config.data` itself.
DATA_FIELDS = ("spike_scale", "steps")
CAMERAS = {
    "of the protocol": {},
    "threshold 2": {"threshold": (2.0, 2.0)},
    "threshold 4": {"threshold": (4.0, 4.0)},
    "spike noise 0.1": {"spike_noise": (0.1, 0.1)},
    "frame noise 0.03": {"frame_noise": (0.03, 0.03)},
    "spikes at full size": {"spike_scale": (1.0, 1.0)},
    "spikes at a quarter": {"spike_scale": (0.25, 0.25)},
    "blur 4 to 12 pixels": {"blur": (4.0, 12.0), "film_share": 0.0},
    "blur 30 to 60 pixels": {"blur": (30.0, 60.0), "film_share": 0.0},
    "films alone": {"film_share": 1.0},
    "exposures of 352 steps": {"steps": 352},
    "exposures of 176 steps": {"steps": 176},
    "exposures of 44 steps": {"steps": 44},
    "exposures of 30 steps": {"steps": 30},
    "exposures of 22 steps": {"steps": 22},
    "exposures of 11 steps": {"steps": 11},
}
# The cameras of the GoPro + spike set, and clips that do not depend on what a model learned from.
PROTOCOL = {
    "film_share": 0.5,
    "gain": (1.0, 1.0), "light_change": 0.0, "frame_noise": (0.0, 0.0), "threshold": (1.0, 1.0),
    "dark_current": (0.0, 0.0), "spike_noise": (0.0, 0.0), "threshold_spread": (0.0, 0.0),
}  # fmt: skip


def main() -> None:
    """Scores one camera after the other."""
    args = _arguments()
    restorer, config = load_with_config(args.checkpoint)
    table = Table(title=f"{args.checkpoint}, {args.clips} held-out clips each")
    for title in ("cameras", "blurred", "TFP", "restored", "worse frames"):
        table.add_column(title)
    found = {}
    for name, changes in CAMERAS.items():
        scores = _score(restorer, list(eval_clips(_data(config.data, args, changes))))
        pairs = [
            (after["psnr_rgb"], before["psnr_rgb"])
            for sequence in dict.fromkeys(key for key, _ in scores.frames)
            for after, before in zip(
                scores.frames[sequence, "restored"], scores.frames[sequence, "blurred"], strict=True
            )
        ]
        worse = sum(after < before for after, before in pairs)
        means = {m: scores.mean(m) for m in ("blurred", "tfp", "tfi", "restored")}
        found[name] = means | {"frames": len(pairs), "worse": worse}
        cells = [f"{means[m]['psnr_rgb']:.2f}" for m in ("blurred", "tfp", "restored")]
        table.add_row(name, *cells, f"{worse} of {len(pairs)}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def _score(restorer: Restorer, clips: list) -> Evaluation:
    """Restores clips as any user's, from spikes and not from the counts that training takes."""
    restored = (restorer.restore(c["blur"], c["spikes"], tile=WHOLE) for _, c in clips)
    return evaluate(lambda batch: [next(restored) for _ in batch], clips, bins=1, baselines=True)


def _data(data: ml_collections.ConfigDict, args, changes) -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict(data.to_dict())
    render = {**data.scenes.render.to_dict(), **PROTOCOL, "photographs": (), "films": ()}
    for name in ("photographs", "films"):
        render[f"eval_{name}"] = (str(args.media / "eval" / name),) if args.media else ()
    for name, value in changes.items():
        if name in DATA_FIELDS:
            data[name] = value
        else:
            render[name] = value
    data.scenes.render = ml_collections.ConfigDict(render)
    data.scenes.eval_clips = args.clips
    data.scenes.height = data.scenes.width = args.size
    return data


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, default=weights.SMALL)
    parser.add_argument("--media", type=pathlib.Path, help="folder of held-out media")
    parser.add_argument("--clips", type=int, default=64, help="clips for each camera")
    parser.add_argument("--size", type=int, default=96, help="height and width of the clips")
    parser.add_argument("--json", type=pathlib.Path, help="write the scores here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
