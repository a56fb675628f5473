"""What is made of a model's parameters for inference changes no result."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.benchmark import random_params
from vrtspike_jax.models import VRT, VRTWithSpike
from vrtspike_jax.restoration.inference import for_inference, make_restore_step, store_params

CLIP = (1, 3, 64, 64)
# Else the compiler leaves out, on CPUs, the rounding of kernels that it finds in the step.
EXACT = {"xla_allow_excess_precision": False}


def _model(**fields):
    vrt = VRT(
        upscale=1, window_size=(2, 4, 4), depths=(8, 2, 2, 2, 2, 2, 2, 1), indep_reconsts=(),
        embed_dims=(16,) * 8, num_heads=(2,) * 8, mul_attn_ratio=0.5, deformable_groups=4,
        dtype=jnp.bfloat16, **fields,
    )  # fmt: skip
    return VRTWithSpike(
        vrt=vrt, spike_bins=4, channels_per_scale=(16,) * 4, spike_blocks=1, time_slope=1.0,
        spike_input=True, spike_alignment=True, alignment_reach=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (*CLIP, 3), np.uint8)
    return frames, rng.integers(0, 3, (*CLIP[:2], 32, 32, 4), np.uint8)


@pytest.fixture(scope="module")
def params(clip):
    return random_params(_model(), dict(zip(("blur", "spikes"), clip, strict=True)))


@pytest.fixture(scope="module")
def step():
    return jax.jit(make_restore_step(_model(remat="light")), compiler_options=EXACT)


def test_weights_are_rounded_to_what_the_model_rounds_them_to(params, clip, step):
    params = jax.tree.map(lambda x: x + 0.001 if x.ndim == 1 else x, params)  # biases are zero
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), store_params(_model(), params))
    assert any(
        jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params, rounded)), strict=True)
    )
    np.testing.assert_array_equal(step(rounded, *clip), step(params, *clip))


@pytest.mark.parametrize("unroll", [False, True])
def test_stored_params_give_the_same_frames(unroll, params, clip, step):
    model = for_inference(_model(remat="light", unroll=unroll))
    assert model.vrt.remat == "none"
    found = jax.jit(make_restore_step(model))(store_params(model, params), *clip)
    wanted = step(params, *clip)
    # Another program rounds elsewhere.
    assert np.abs(found - wanted).mean() < 2e-3 < np.abs(wanted - clip[0] / 255).mean() / 10


def test_a_step_converts_fewer_kernels_and_slices_none_where_pairs_are_unrolled(params, clip):
    model = for_inference(_model(unroll=True))
    stored = store_params(model, params)
    plain, compiled = (
        jax.jit(make_restore_step(model)).lower(p, *clip).compile().as_text()
        for p in (params, stored)
    )

    def conversions(text):
        return text.count("bf16[16,48]{1,0} convert(")

    def slices(text):
        return len(re.findall(r"= \S*\[(?:1,)?16,48\]\S* slice\(", text))

    assert conversions(plain) > conversions(compiled)
    assert slices(plain) > 0 == slices(compiled)


def test_flow_stays_float32_and_pairs_are_cut_apart(params):
    stored = store_params(_model(unroll=True), params)["vrt"]
    assert {leaf.dtype for leaf in jax.tree.leaves(stored["spynet"])} == {jnp.dtype("float32")}
    pairs = stored["stage1"]["residual_group1"]["pairs"]
    assert isinstance(pairs, tuple) and len(pairs) == 2
    kernel = params["vrt"]["stage1"]["residual_group1"]["pairs"]["plain"]["attn"]["proj"]["kernel"]
    found = jnp.stack([pair["plain"]["attn"]["proj"]["kernel"] for pair in pairs])
    chex.assert_trees_all_equal(found, kernel.astype(jnp.bfloat16))


def test_other_models_are_stored_too():
    model = VRT(upscale=1, dtype=jnp.float32, remat="attn")
    assert for_inference(model).remat == "none"
    params = {"norm": {"scale": jnp.ones(3)}, "conv": {"kernel": jnp.ones((3, 3))}}
    chex.assert_trees_all_equal(store_params(model, params), params)
