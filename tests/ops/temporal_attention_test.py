import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered

from vrtspike_jax.models.spike import TemporalAttention
from vrtspike_jax.ops import temporal_attention


def _inputs(frames, memory, dtype=jnp.float32, pixels=7, heads=3, dim=8, biased=True):
    keys = jax.random.split(jax.random.key(frames), 3)
    shapes = [(2, n, pixels, heads, dim) for n in (frames, memory, memory)]
    inputs = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    inputs[0] *= (8 / dim) ** 0.5
    bias = jax.random.normal(keys[0], (heads, frames, memory)) if biased else None
    return [*(a.astype(dtype) for a in inputs), bias]


def _value_and_gradients(implementation, arguments):
    """The result and the gradients of all arguments, after a weighted sum of the result."""

    def run(*arguments):
        def loss(*arguments):
            out = temporal_attention(*arguments, implementation=implementation)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return jnp.sum(out.astype(jnp.float32) * weights), out

        argnums = tuple(i for i, a in enumerate(arguments) if a is not None)
        return jax.value_and_grad(loss, argnums=argnums, has_aux=True)(*arguments)

    # Without optimisation, as compiling the unrolled kernels takes longer than running them.
    compiled = jax.jit(run).lower(*arguments).compile({"xla_backend_optimization_level": 0})
    return [np.asarray(a, np.float32) for a in jax.tree.leaves(compiled(*arguments))]


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


# Two tiles a sample of the rows, the second not full; heads that fill a tile and that do not.
SIZES = {
    "small model": {"frames": 5, "memory": 5, "pixels": 33, "heads": 4, "dim": 8},
    "baseline": {"frames": 5, "memory": 5, "pixels": 9, "heads": 4, "dim": 24},
    "heads in part": {"frames": 3, "memory": 3, "pixels": 43, "heads": 3, "dim": 8},
    "longer memory": {"frames": 2, "memory": 6, "pixels": 7, "heads": 2, "dim": 20},
    "shorter memory": {"frames": 6, "memory": 1, "pixels": 3, "heads": 1, "dim": 4},
    "more heads than a tile's rows": {
        "frames": 1,
        "memory": 11,
        "pixels": 3,
        "heads": 6,
        "dim": 64,
    },
}


@pytest.mark.parametrize(
    "name, biased", [*((name, True) for name in SIZES), ("heads in part", False)]
)
def test_kernels_equal_the_reference_forward_and_backward(name, biased):
    arguments = _inputs(**SIZES[name], biased=biased)
    found = _value_and_gradients("interpret", arguments)
    wanted = _value_and_gradients("products", arguments)
    assert len(found) == 6 if biased else 5
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 if a.ndim in (0, 3) else 1e-5)


@pytest.mark.parametrize("name", ["small model", "baseline"])
def test_kernels_are_as_exact_in_bfloat16_as_products(name):
    half = _inputs(**SIZES[name], dtype=jnp.bfloat16)
    # What remains is rounding in between, and of the results.
    exact = _value_and_gradients("products", [a.astype(jnp.float32) for a in half])
    found = {i: _value_and_gradients(i, half)[1:] for i in ("products", "interpret")}
    errors = {
        i: [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(v, exact[1:], strict=True)]
        for i, v in found.items()
    }
    assert max(errors["interpret"]) < 4e-3
    for kernel, products in zip(errors["interpret"], errors["products"], strict=True):
        assert kernel < 1.1 * products


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("platform, kernels", [("cuda", 2), ("tpu", 0)])
def test_kernels_are_lowered_for_cuda_and_left_out_for_tpus(platform, kernels, biased):
    def loss(*arguments):
        out = temporal_attention(*arguments, implementation="pallas")
        return out.astype(jnp.float32).sum(), out

    arguments = _inputs(5, 5, jnp.bfloat16, dim=24, biased=biased)
    run = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    module, found = lowered(run, platform, *arguments)
    assert found == kernels
    assert ("dot_general" in module) == (platform == "tpu")


def test_gpus_take_kernels_for_short_clips_sums_or_products_for_others(monkeypatch):
    def taken(frames=2, drop=None, implementation="auto", **changed):
        arguments = _inputs(frames, 5, **changed)
        traced = str(
            jax.make_jaxpr(
                lambda *a: temporal_attention(*a, drop=drop, implementation=implementation)
            )(*arguments)
        )
        names = {"pallas_call": "kernel", "dot_general": "products", "div": "sums"}
        return next(name for operation, name in names.items() if operation in traced)

    def drop(weights):
        return weights

    assert taken() == "products"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert taken() == taken(implementation="pallas") == "kernel"
    assert taken(implementation="xla") == taken(dim=72) == "sums"
    for implementation in ("auto", "pallas", "xla"):
        assert taken(16, implementation=implementation) == "products"
        assert taken(drop=drop, implementation=implementation) == "products"


@pytest.mark.parametrize(
    "kernels, wanted", [("auto", True), ("cudnn", True), ("pallas", True), ("xla", False)]
)
def test_the_model_hands_its_choice_on(monkeypatch, kernels, wanted):
    x = jnp.ones((1, 3, 4, 16))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    module = TemporalAttention(heads=2, kernels=kernels)
    traced = jax.make_jaxpr(lambda x: module.init_with_output(jax.random.key(0), x, x, False))(x)
    assert ("pallas_call" in str(traced)) == wanted


def test_unknown_implementations_and_dropout_of_sums_are_refused():
    arguments = _inputs(3, 3)
    with pytest.raises(ValueError, match="'cudnn'"):
        temporal_attention(*arguments, implementation="cudnn")
    with pytest.raises(ValueError, match="no dropout"):
        temporal_attention(*arguments, drop=lambda weights: weights, implementation="sums")
