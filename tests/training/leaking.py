"""`python leaking.py MIB WORKDIR [field=value ...]`: the stand-in, keeping MIB more each step."""

import sys

import numpy as np
import stand_in

from vrtspike_jax.training.loop import Loop


def main(argv):
    kept, one_step, mib = [], Loop._one_step, float(argv[1])

    def leaking_step(self):
        one_step(self)
        # Ones, not zeros: untouched pages would not count.
        kept.append(np.ones(int(mib * 2**17)))

    Loop._one_step = leaking_step
    stand_in.main(argv[1:])


if __name__ == "__main__":
    main(sys.argv)
