"""A program that runs each operation on eight simulated devices and on one.

python split_operations.py IMPLEMENTATION REFERENCE DATA,FSDP,SPATIAL [NAME ...]

Prints, as JSON, for each operation how far results and gradients are from those of REFERENCE on one
device, and the collectives of the compiled program.
"""

import functools
import json
import os
import re
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vrtspike_jax import ops
from vrtspike_jax.ops.window_layout import axis_regions, shift_regions
from vrtspike_jax.training.sharding import AXES, make_mesh

BATCH = 8
BATCH_AXES = ("data", "fsdp")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed_windows():
    """Window attention of windows one after another, with the regions of a shift."""
    window, size = (2, 4, 4), (2, 8, 8)
    regions = shift_regions(axis_regions(size, window, (0, 2, 2)), window)
    shape = BATCH * len(regions), 32, 2, 16

    def run(q, k, v, bias, implementation):
        return ops.window_attention(q, k, v, bias, regions, implementation)

    return run, [normal(i, *shape) for i in range(3)], [normal(3, 2, 32, 32)]


def shifted_windows(mutual):
    def run(*args, implementation):
        options = {"window": (2, 4, 4), "shift": (0, 2, 2), "implementation": implementation}
        if mutual:
            options["mutual"] = args[1]
        options["carried"] = args[2 + mutual :]
        return ops.shifted_window_attention(args[0], args[1 + mutual], **options)

    maps = [normal(i, BATCH, 2, 8, 8, 96) for i in range(1 + mutual)]
    return run, maps, [normal(3, 2, 32, 32), *[normal(i, 96) for i in range(1 + mutual)]]


def feed_forward(scaled):
    def run(x, scale, *weights, implementation):
        scale = scale if scaled else None
        return ops.gated_mlp(x, *weights, scale, implementation=implementation)

    shapes = (32,), (32,), (32, 48), (48,), (32, 48), (48,), (48, 32), (32,)
    weights = [normal(i, *s) * 0.3 for i, s in enumerate(shapes)]
    return run, [normal(9, BATCH, 3, 10, 32), normal(8, BATCH)], weights


def normalised(with_input):
    def run(x, scale, gamma, beta, bias, implementation):
        carried = (bias, scale) if with_input else None
        out = ops.layer_norm(x, gamma, beta, None, with_input, implementation, carried)
        return out[1] + out[0] if with_input else out

    split = [normal(0, BATCH, 3, 10, 32), normal(8, BATCH)]
    return run, split, [normal(i, 32) for i in (1, 2, 3)]


def gate():
    def run(packed, bias, implementation):
        return ops.gelu_gate(packed, bias, implementation)

    return run, [normal(0, BATCH, 3, 10, 32)], [normal(1, 32)]


def normed_and_projected():
    def run(x, scale, gamma, beta, weight, bias, last, implementation):
        carried, kernels = (last, scale), implementation
        y, x = ops.normed_projection(x, gamma, beta, weight, bias, carried, implementation=kernels)
        return jnp.concatenate([y, x], axis=-1)

    split = [normal(0, BATCH, 3, 20, 32), normal(8, BATCH)]
    shapes = (32,), (32,), (32, 96), (96,), (32,)
    return run, split, [normal(i, *s) for i, s in enumerate(shapes, 1)]


def warp(channels):
    def run(x, flow, implementation):
        return ops.flow_warp(x, flow, implementation=implementation)

    return run, [normal(0, BATCH, 8, 8, channels), 2 * normal(1, BATCH, 8, 8, 2)], []


def deformable():
    def run(x, raw, flow, weight, implementation):
        return ops.flow_guided_deform_conv(x, raw, flow, weight, None, 3.0, implementation)

    split = [normal(0, BATCH, 8, 8, 64), normal(1, BATCH, 8, 8, 2, 9, 3, 4)]
    return run, [*split, normal(2, BATCH, 8, 8, 2, 2)], [normal(3, 3, 3, 32, 16)]


def over_time(biased):
    def run(*args, implementation):
        return ops.temporal_attention(*args, implementation=implementation)

    split = [normal(i, BATCH, 3, 20, 2, 16) for i in range(3)]
    return run, split, [normal(3, 2, 3, 3)] if biased else []


def transformed():
    """The feed-forward block recomputed, in a loop, for both halves of the frames by `vmap`."""
    block, split, weights = feed_forward(True)

    def run(x, scale, *weights, implementation):
        @jax.checkpoint
        def body(x, _):
            return block(x, scale, *weights, implementation=implementation), None

        def halves(x):
            return jax.lax.scan(body, x, None, length=2)[0]

        return jax.vmap(halves, in_axes=2, out_axes=2)(x)

    return run, [split[0].reshape(BATCH, 3, 2, 5, 32), split[1]], weights


OPERATIONS = {
    "packed windows": packed_windows,
    "self attention": functools.partial(shifted_windows, False),
    "mutual attention": functools.partial(shifted_windows, True),
    "feed-forward": functools.partial(feed_forward, True),
    "feed-forward without scale": functools.partial(feed_forward, False),
    "normalised": functools.partial(normalised, False),
    "normalised with input": functools.partial(normalised, True),
    "normed projection": normed_and_projected,
    "gate": gate,
    "warp": functools.partial(warp, 16),
    "warp of few channels": functools.partial(warp, 3),
    "deformable": deformable,
    "time": functools.partial(over_time, False),
    "time with bias": functools.partial(over_time, True),
    "transformed": transformed,
}


def gradients(run, implementation):
    """Jitted: the result, and the gradients of all arguments."""

    def loss(args):
        out = run(*args, implementation=implementation)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def place(mesh, split, shared):
    """Batches over data and fsdp, rows over spatial; the last axis of what is shared over fsdp."""

    def put(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def rows(x):
        if x.ndim < 4 or x.shape[x.ndim - 3] != 8:
            return []
        return [None] * (x.ndim - 4) + ["spatial"]

    def columns(x):
        return [None] * (x.ndim - 1) + ["fsdp"] if x.shape[-1] % mesh.shape["fsdp"] == 0 else []

    return [
        *(put(x, BATCH_AXES, *rows(x)) for x in split),
        *(put(x, *columns(x)) for x in shared),
    ]


def collectives(text):
    """Kind and largest number of elements of each collective of a compiled module."""
    found = {}
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-\w+|reduce-scatter|collective-permute)\(", line)
        if match:
            sizes = [
                int(np.prod([int(n) for n in shape.split(",") if n]))
                for shape in re.findall(r"\w\[([\d,]*)\]", match[1])
            ]
            found[match[2]] = max(found.get(match[2], 0), *sizes)
    return found


def compare(mesh, name, implementation, reference):
    """One operation on the mesh against the same on one device."""
    run, split, shared = OPERATIONS[name]()
    (_, want), want_gradients = gradients(run, reference)([*split, *shared])
    args = place(mesh, split, shared)
    step = gradients(run, implementation).lower(args).compile()
    (_, out), found = step(args)
    errors = [
        float(np.max(np.abs(np.asarray(a) - b)) / (1 + np.max(np.abs(b))))
        for a, b in zip([out, *found], [want, *want_gradients], strict=True)
    ]
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return {
        "error": max(errors),
        "collectives": collectives(step.as_text()),
        # Elements of a device's part of the batch, and of the largest of what all share.
        "part": max(x.size for x in split) // parts,
        "shared": max((x.size for x in shared), default=1),
        "samples": out.sharding.shard_shape(out.shape)[0] * parts / len(out),
    }


def main(argv):
    implementation, reference, sizes, *names = argv[1:]
    sizes = dict(zip(AXES, map(int, sizes.split(",")), strict=True))
    mesh = make_mesh(ml_collections.ConfigDict(sizes), BATCH)
    names = names or OPERATIONS
    print(json.dumps({name: compare(mesh, name, implementation, reference) for name in names}))


if __name__ == "__main__":
    main(sys.argv)
