"""Parameters as vectors, as trees, and in the form in which a step uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.models import stored
from vrtspike_jax.models.attention import TMSAG
from vrtspike_jax.training.packing import FORMS, MULTIPLE, Layout


@pytest.mark.parametrize("form", FORMS)
def test_packing_gives_the_tree_back_and_pads_vectors_with_zeros(form):
    tree = {"a": {"spynet": {"w": jnp.arange(6.0).reshape(2, 3)}}, "b": jnp.arange(4.0)}
    layout = Layout.of(tree, ("spynet",), form)
    groups = layout.pack(tree)
    back = layout.unpack(groups)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    if form == "vector":
        assert {k: v.shape for k, v in groups.items()} == {"flow": (MULTIPLE,), "rest": (MULTIPLE,)}
        assert not groups["flow"][6:].any()


def test_matrices_of_a_shape_are_one_stack_whatever_their_axes():
    tree = {
        "a": {"conv": jnp.ones((3, 3, 4, 24)), "bias": jnp.ones(24), "scale": jnp.float32(1)},
        "b": {"dense": 2 * jnp.ones((36, 24)), "table": jnp.ones((225, 6))},
        "pairs": {"kernel": 3 * jnp.ones((2, 36, 24)), "scale": jnp.ones((20, 24))},
        "spynet": {"w": jnp.ones((16, 16))},
    }
    groups = Layout.of(tree, ("spynet",), "stacks").pack(tree)
    assert {k: v.shape for k, v in groups["flow"].items()} == {
        "vector": (MULTIPLE,), "16x16": (1, 16, 16)
    }  # fmt: skip
    assert {k: v.shape for k, v in groups["rest"].items()} == {
        "vector": (2 * MULTIPLE,), "36x24": (4, 36, 24)
    }  # fmt: skip
    assert groups["rest"]["36x24"].mean((1, 2)).tolist() == [1, 2, 3, 3]


@pytest.fixture(scope="module")
def group():
    """Four blocks in two pairs, their parameters, and features."""
    block = {"dim": 16, "window_size": (2, 4, 4), "num_heads": 2, "mut_attn": False}
    model = TMSAG(4, block | {"dtype": jnp.bfloat16}, unroll=True)
    x = jax.random.normal(jax.random.key(0), (1, 2, 8, 8, 16))
    params = model.init(jax.random.key(1), x)["params"]
    noise = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(noise), p.shape), params)
    return model, params, x


@pytest.mark.parametrize("form", ["vector", "stacks"])
def test_pairs_apart_are_the_parts_of_the_stack(group, form):
    _, params, _ = group
    layout = Layout.of(params, (), form)
    groups = layout.pack(params)
    found = layout.unpack(groups, apart=True)
    jax.tree.map(np.testing.assert_array_equal, found, stored.apart(params))
    assert isinstance(found["pairs"], tuple) and len(found["pairs"]) == 2
    jax.tree.map(np.testing.assert_array_equal, layout.pack(found), groups)
    as_lists = Layout.of(params, (), "arrays")
    listed = as_lists.unpack(as_lists.pack(params), apart=True)
    jax.tree.map(np.testing.assert_array_equal, listed, params)


def test_parameters_as_a_step_uses_them_have_the_same_gradient(group):
    model, params, x = group
    layout = Layout.of(params, (), "vector")
    used = stored.in_compute_dtype(layout.unpack(layout.pack(params), apart=True), jnp.bfloat16)
    first = used["pairs"][0]["plain"]
    assert first["attn"]["proj"]["kernel"].dtype == first["attn"]["proj"]["bias"].dtype
    assert first["attn"]["proj"]["kernel"].dtype == jnp.bfloat16
    # A feed-forward block gives float32 gradients; norms are computed in float32.
    assert {leaf.dtype for leaf in jax.tree.leaves(first["mlp"])} == {np.dtype(np.float32)}
    assert first["norm1"]["scale"].dtype == jnp.float32

    @jax.jit
    def gradient(params):
        def loss(params):
            return jnp.sum(jnp.sin(model.apply({"params": params}, x).astype(jnp.float32)))

        return layout.pack(jax.grad(loss)(params))

    found, wanted = gradient(used), gradient(params)
    assert np.linalg.norm(wanted["rest"]) > 1
    for name in wanted:
        assert found[name].dtype == jnp.float32
        error = np.linalg.norm(found[name] - wanted[name])
        assert error <= 2e-3 * np.linalg.norm(wanted[name])
