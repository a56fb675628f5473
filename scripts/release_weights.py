"""Turns a trained run into one file of weights, as this package ships them.

    python scripts/release_weights.py runs/small vrtspike_jax/weights/small.safetensors

Takes the best checkpoint (averaged parameters where there are any); prints its size.
"""

import argparse
import pathlib

from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training.checkpoints import load_for_inference
from vrtspike_jax.weights import save_weights


def main() -> None:
    """Reads the checkpoint and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="workdir, or one checkpoint")
    parser.add_argument("out", type=pathlib.Path, help="file to write, .safetensors")
    parser.add_argument("--prefer", default="best", choices=("best", "latest"))
    args = parser.parse_args()
    checkpoint = files.locate(args.run, args.prefer)
    _, params, config = load_for_inference(checkpoint)
    steps = files.read_meta(checkpoint).step
    save_weights(args.out, params, config, steps=str(steps))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {steps} steps")


if __name__ == "__main__":
    main()
