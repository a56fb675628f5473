import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.gated_mlp_test import arguments
from vrtspike_jax.ops import pallas_mlp
from vrtspike_jax.ops.gated_mlp import gated_mlp

ROWS, CHANNELS, HIDDEN = 50, 24, 48


@pytest.mark.parametrize(
    "fields",
    [
        {"joined": True, "chunk": 16},
        {"joined": True, "chunk": 16, "programs": 2},
        {"chunk": 32, "programs": 2},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_every_plan_gives_the_reference_forward_and_backward(fields):
    given = arguments(ROWS, CHANNELS, HIDDEN)
    scale = jnp.array([0.0, 1.25])
    size = 2 * ROWS, ROWS, CHANNELS, HIDDEN
    plan = pallas_mlp.Plan(*size, block=16, **fields, interpret=True)
    dout = jnp.cos(given["x"])
    x, *weights = given.values()
    want, pull = jax.vjp(
        lambda *given: gated_mlp(*given, branch_scale=scale, implementation="xla"),
        *given.values(),
    )
    out = pallas_mlp.forward(plan, x, scale, *weights)
    np.testing.assert_allclose(out, want, atol=2e-5)
    gradient = pallas_mlp.backward(dataclasses.replace(plan, programs=0), x, scale, dout, *weights)
    for name, value, wanted in zip(given, gradient, pull(dout), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-4, err_msg=name)
