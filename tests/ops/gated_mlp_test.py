import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.ops.gated_mlp import gated_mlp


def arguments(rows: int, channels: int, hidden: int):
    shapes = {
        "x": (2, rows, channels),
        "gamma": (channels,),
        "beta": (channels,),
        "w11": (channels, hidden),
        "b11": (hidden,),
        "w12": (channels, hidden),
        "b12": (hidden,),
        "w2": (hidden, channels),
        "b2": (channels,),
    }
    rng = np.random.default_rng(channels)
    return {
        name: jnp.asarray(
            rng.standard_normal(s) * (s[0] ** -0.5 if len(s) == 2 else 1), jnp.float32
        )
        for name, s in shapes.items()
    }


@pytest.mark.parametrize(
    ("rows", "channels", "hidden"), [(64, 96, 192), (50, 24, 48), (40, 30, 60)]
)
def test_kernel_equals_reference_forward_and_backward(rows, channels, hidden):
    given = arguments(rows, channels, hidden)
    scale = jnp.array([0.0, 1.25])

    def loss(given, implementation):
        out = gated_mlp(**given, branch_scale=scale, implementation=implementation)
        return jnp.sum(jnp.sin(out)), out

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, want), want_gradient = run(given, "xla")
    (_, out), gradient = run(given, "interpret")
    np.testing.assert_allclose(out, want, atol=2e-5)
    for name, value in want_gradient.items():
        np.testing.assert_allclose(gradient[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


def test_unknown_implementation_is_an_error():
    given = arguments(8, 16, 32)
    with pytest.raises(ValueError, match="'cuda'"):
        gated_mlp(**given, implementation="cuda")
