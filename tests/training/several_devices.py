"""A program that trains the stand-in model on a mesh, alone or as one of several processes.

python several_devices.py WORKDIR data,fsdp,spatial [HOST_INDEX NUM_HOSTS PORT [STEPS]]
"""

import sys

import stand_in
from absl import app, flags

from vrtspike_jax import main as program
from vrtspike_jax.training import sharding

BATCH = 8
STEPS = 10


def config(mesh, steps=STEPS):
    """Steps of eight clips, one micro-batch each."""
    found = stand_in.tiny_config(steps)
    found.unlock()
    found.data.batch_size = BATCH
    found.optim.accumulation_steps = 1
    found.mesh.data, found.mesh.fsdp, found.mesh.spatial = mesh
    return found.lock()


def main(argv):
    """Runs one process."""
    stand_in.register()
    # The stand-in's kernels are small; split them all the same.
    sharding.SMALLEST_SHARDED = 64
    if len(argv) > 3:
        flags.FLAGS.set_default("host_index", int(argv[3]))
        flags.FLAGS.set_default("num_hosts", int(argv[4]))
        flags.FLAGS.set_default("coordinator", f"localhost:{argv[5]}")
    flags.FLAGS.set_default("workdir", argv[1])
    mesh = tuple(int(size) for size in argv[2].split(","))
    steps = int(argv[6]) if len(argv) > 6 else STEPS
    app.run(lambda _: program.dispatch(config(mesh, steps), argv[1], "train"), argv[:1])


if __name__ == "__main__":
    main(sys.argv)
