import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.ops import temporal_attention


def _inputs(frames, memory, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(frames), 3)
    shapes = [(2, n, 7, 3, 8) for n in (frames, memory, memory)]
    inputs = [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]
    return [*inputs, jax.random.normal(keys[0], (3, frames, memory))]


def _value_and_gradients(implementation, arguments):
    @jax.jit
    def run(*arguments):
        def loss(*arguments):
            out = temporal_attention(*arguments, implementation=implementation)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return jnp.sum(out.astype(jnp.float32) * weights), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*arguments)

    return [np.asarray(a, np.float32) for a in jax.tree.leaves(run(*arguments))]


@pytest.mark.parametrize("frames, memory", [(5, 5), (3, 4), (1, 1)])
def test_sums_equal_products_forward_and_backward(frames, memory):
    arguments = _inputs(frames, memory)
    wanted = _value_and_gradients("products", arguments)
    for a, b in zip(_value_and_gradients("sums", arguments), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 if a.ndim == 0 else 2e-6)


def test_sums_are_as_exact_in_bfloat16_as_products():
    exact = _value_and_gradients("products", _inputs(5, 5))
    half = _inputs(5, 5, jnp.bfloat16)
    for implementation in ("products", "sums"):
        for a, b in zip(_value_and_gradients(implementation, half), exact, strict=True):
            assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b) + 0.1


def test_gpus_take_sums_for_short_clips_and_products_for_long_ones_or_dropout(monkeypatch):
    def traced(frames, drop=None):
        return str(
            jax.make_jaxpr(lambda *a: temporal_attention(*a, drop=drop))(*_inputs(frames, 5))
        )

    assert "dot_general" in traced(5)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "dot_general" not in traced(5)
    assert "dot_general" in traced(16)
    assert "dot_general" in traced(5, lambda weights: weights)


def test_unknown_implementations_and_dropout_of_sums_are_refused():
    arguments = _inputs(3, 3)
    with pytest.raises(ValueError, match="'cudnn'"):
        temporal_attention(*arguments, implementation="cudnn")
    with pytest.raises(ValueError, match="no dropout"):
        temporal_attention(*arguments, drop=lambda weights: weights, implementation="sums")
