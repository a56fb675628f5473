"""State dicts to convert."""

import numpy as np


def drawn(shapes, seed=0):
    """Random float32 arrays of the named shapes."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}
