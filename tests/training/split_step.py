"""A program that takes one step of training with kernels on four simulated devices and on one.

Prints, as JSON, metrics of both, how far apart the optimiser's moments are, and the collectives of
the compiled step.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))

from split_operations import collectives  # first: it sets the number of simulated devices

# isort: split
import jax
import numpy as np

from configs import baseline
from vrtspike_jax import benchmark

BATCH, FRAMES, SIZE = 4, 2, 64
METRICS = ("loss", "psnr", "grad_norm")


def config(mesh, kernels):
    """A small model with each kind of kernel: attention and warping at the smallest scale alone."""
    found = baseline.get_config()
    found.unlock()
    found.mesh.data, found.mesh.fsdp, found.mesh.spatial = mesh
    found.loss.vgg_weight = 0.0
    found.data.voxel.bins = found.model.spike_bins = 4
    found.model.update({"kernels": kernels, "dtype": "float32", "remat": "light"})
    found.model.update({"channels_per_scale": (32,) * 4, "tsa_heads": 2, "fuse_heads": 2})
    found.model.vrt.update(
        {
            "conv_scales": 3,
            "depths": (1,) * 8,
            "embed_dims": (32,) * 8,
            "num_heads": (2,) * 8,
            "indep_reconsts": (),
            "mul_attn_ratio": 1.0,
            "deformable_groups": 4,
        }
    )
    return found.lock()


def run(mesh, kernels):
    """Metrics, parameters, moments and the compiled text of one step."""
    work = benchmark.train_workload(config(mesh, kernels), BATCH, FRAMES, SIZE, SIZE)
    compiled = work.step.lower(*work.args).compile()
    state, metrics = compiled(*work.args)
    moments = [np.asarray(x) for x in jax.tree.leaves(state.opt_state)]
    metrics = {name: float(metrics[name]) for name in METRICS}
    return metrics, jax.tree.leaves(state.params), moments, compiled.as_text()


def main():
    want, _, want_moments, _ = run((1, 1, 1), "xla")
    found, params, moments, text = run((4, 1, 1), "interpret")
    apart = max(
        float(np.max(np.abs(a - b)) / (1e-12 + np.max(np.abs(b))))
        for a, b in zip(moments, want_moments, strict=True)
    )
    result = {"found": found, "wanted": want, "apart": apart, "collectives": collectives(text)}
    print(json.dumps(result | {"largest": max(x.size for x in params)}))


if __name__ == "__main__":
    main()
