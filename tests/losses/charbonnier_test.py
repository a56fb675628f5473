import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.losses import charbonnier


def test_equals_the_formula_summed_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 2, 3, 4, 5, 3))
    total = sum(((x - y) ** 2 + 1e-3**2) ** 0.5 for x, y in zip(a.ravel(), b.ravel(), strict=True))
    np.testing.assert_allclose(charbonnier(jnp.array(a), jnp.array(b)), total / a.size, rtol=1e-5)


def test_axis_keeps_one_value_per_clip_whose_mean_is_the_loss():
    rng = np.random.default_rng(1)
    a, b = jnp.array(rng.random((2, 4, 3, 5, 5, 3)))
    per_clip = charbonnier(a, b, axis=(1, 2, 3, 4))
    assert per_clip.shape == (4,)
    np.testing.assert_allclose(per_clip.mean(), charbonnier(a, b), rtol=1e-6)


def test_equal_images_give_delta_and_a_zero_gradient():
    x = jnp.full((1, 4, 4, 3), 0.3)
    value, gradient = jax.value_and_grad(charbonnier)(x, x, 0.01)
    assert value == pytest.approx(0.01)
    assert not np.any(gradient)


def test_bfloat16_inputs_are_compared_in_float32():
    a, b = jnp.ones((8, 8), jnp.bfloat16), jnp.zeros((8, 8), jnp.bfloat16)
    assert charbonnier(a, b).dtype == jnp.float32
