"""The U-Nets: shapes, what a frame sees of the others, spikes that reach the output, refusals."""

import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import normal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import small
from vrtspike_jax.models import ShiftUNet, UNetSpike
from vrtspike_jax.models.build import build_model
from vrtspike_jax.models.residual import ResidualBlock, shift_frames

BINS = 4
FIELDS = {
    UNetSpike: {"channels": (4, 6, 8, 10)},
    ShiftUNet: {
        "channels": (4, 8, 8, 8),
        "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1, 1),
    },
}
MIDDLE = 4
KINDS = [*((cls, {}) for cls in FIELDS), (ShiftUNet, {"gated": True})]


@pytest.fixture(
    scope="module", params=KINDS, ids=lambda kind: kind[0].__name__ + "-gated" * len(kind[1])
)
def unet(request):
    """Builds the model with some fields changed."""
    cls, own = request.param
    return lambda **fields: cls(spike_bins=BINS, **FIELDS[cls] | own | fields)


@pytest.fixture(scope="module")
def clip():
    """Frames and spikes of half their size."""
    return 0.5 + 0.1 * normal(0, 2, 9, 16, 24, 3), jnp.abs(normal(1, 2, 9, 8, 12, BINS))


@pytest.fixture(scope="module")
def params(unet, clip):
    return small_models.drawn_params(unet(), *clip)


@pytest.fixture(scope="module")
def restore(unet, params):
    return jax.jit(lambda *clip: unet().apply({"params": params}, *clip))


def test_frames_keep_their_shape(restore, clip):
    out = restore(*clip)
    chex.assert_shape(out, clip[0].shape)
    chex.assert_tree_all_finite(out)
    assert out.dtype == jnp.float32
    assert np.abs(out - clip[0]).mean() > 0.05  # The network takes part.


def seen_from_the_middle(restore, clip):
    """Which frames change with the middle one of the first clip, and with its spikes."""
    frames, voxels = clip
    before = restore(frames, voxels)
    changes = (
        (frames.at[0, MIDDLE].add(0.1), voxels),
        (frames, voxels.at[0, MIDDLE].add(1.0)),
    )
    return [np.abs(restore(*changed) - before).max(axis=(2, 3, 4)) > 0 for changed in changes]


# A block of the encoder and one of the decoder at 1/4, one at 1/8 see the frames beside each.
@pytest.mark.parametrize(
    ("model", "reach"),
    [
        (UNetSpike(BINS, **FIELDS[UNetSpike]), 0),
        (ShiftUNet(BINS, **FIELDS[ShiftUNet]), 3),
        (ShiftUNet(BINS, **FIELDS[ShiftUNet], shift_scale=3), 1),
        (ShiftUNet(BINS, **FIELDS[ShiftUNet], shift_scale=4), 0),
    ],
)
def test_a_frame_sees_as_many_neighbours_as_blocks_shift(clip, model, reach):
    params = small_models.drawn_params(model, *clip)
    wanted = np.zeros((2, 9), bool)
    wanted[0, MIDDLE - reach : MIDDLE + reach + 1] = True
    for seen in seen_from_the_middle(jax.jit(lambda *c: model.apply({"params": params}, *c)), clip):
        np.testing.assert_array_equal(seen, wanted)


def test_shifting_is_a_loop_over_frames_and_channels():
    x = np.asarray(normal(2, 2 * 3, 2, 2, 19))  # two clips of three frames
    want = x.copy().reshape(2, 3, 2, 2, 19)
    for source, shifted in zip(x.reshape(want.shape), want, strict=True):
        for t in range(3):
            shifted[t, ..., :2] = source[t + 1, ..., :2] if t < 2 else 0
            shifted[t, ..., 2:4] = source[t - 1, ..., 2:4] if t > 0 else 0
    np.testing.assert_array_equal(shift_frames(x, 3), want.reshape(x.shape))


def test_a_block_that_shifts_single_frames_hears_nothing_from_its_neighbours():
    x = normal(3, 4, 5, 6, 8)
    shifting = ResidualBlock(8, clip=1)
    params = small_models.drawn_params(shifting, x)
    silent = params["conv1"]["kernel"].at[:, :, :2].set(0)  # of the two channels that would move
    silent = params | {"conv1": params["conv1"] | {"kernel": silent}}
    np.testing.assert_allclose(
        shifting.apply({"params": params}, x),
        ResidualBlock(8).apply({"params": silent}, x),
        atol=1e-6,
    )


def test_a_gated_block_lets_through_values_times_gelu_of_gates():
    x, gate = normal(3, 2, 5, 6, 12), 1.5
    block = ResidualBlock(12, gated=True)
    params = small_models.drawn_params(block, x)
    half = params["conv1"]["bias"].size // 2
    assert half == 8  # two thirds of the channels
    # The same gate everywhere, so that what is left is a block of convolutions alone.
    conv = {"kernel": params["conv1"]["kernel"].at[..., half:].set(0)}
    conv["bias"] = params["conv1"]["bias"].at[half:].set(gate)

    def added(conv):
        return block.apply({"params": params | {"conv1": conv}}, x) - x

    shut = added(conv | {"bias": conv["bias"].at[half:].set(-20.0)})
    np.testing.assert_allclose(shut, jnp.broadcast_to(params["conv2"]["bias"], x.shape), atol=1e-5)
    opened = added(conv) - shut
    wider = added(conv | {"bias": conv["bias"].at[half:].set(-gate)}) - shut
    np.testing.assert_allclose(wider / opened, jax.nn.gelu(-gate, False) / jax.nn.gelu(gate, False),
                               rtol=1e-2)  # fmt: skip
    assert np.abs(opened).mean() > 0.1


def test_gates_change_the_number_of_parameters_little():
    counts = [parameters(ShiftUNet(gated=gated)) for gated in (False, True)]
    assert 0 < counts[1] - counts[0] < 0.03 * counts[0] and counts[1] < 4e6


def test_spikes_reach_every_pixel(unet, params, clip):
    def loss(voxels):
        return jnp.sum(jnp.sin(unet().apply({"params": params}, clip[0], voxels)))

    gradient = small_models.quickly(jax.grad(loss), clip[1])
    assert (np.abs(gradient).max(axis=-1) > 0).all()


def test_spikes_at_full_size_are_resized_to_half_of_it_by_the_small_model(clip):
    model = ShiftUNet(BINS, **FIELDS[ShiftUNet])
    params = small_models.drawn_params(model, *clip)
    frames, voxels = clip
    finer = jnp.repeat(jnp.repeat(voxels, 2, axis=2), 2, axis=3)
    restore = jax.jit(lambda *clip: model.apply({"params": params}, *clip))
    np.testing.assert_allclose(restore(frames, finer), restore(frames, voxels), atol=1e-4)


def test_an_untrained_network_returns_its_input(unet, clip):
    params = jax.jit(unet().init)(jax.random.key(0, impl="rbg"), *clip)["params"]
    np.testing.assert_array_equal(unet().apply({"params": params}, *clip), clip[0])


def test_bfloat16_and_recomputation_are_near_the_plain_network(unet, params, clip, restore):
    model = unet(dtype=jnp.bfloat16, remat="block")
    found = jax.jit(model.apply)({"params": params}, *clip)
    wanted = restore(*clip)
    assert found.dtype == jnp.float32
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 5e-2


@pytest.mark.parametrize(
    ("name", "least", "most"), [("shift_unet", 3.5e6, 4.0e6), ("unet_spike", 4.8e6, 5.0e6)]
)
def test_the_configs_have_as_many_parameters_as_they_say(name, least, most):
    model = build_model(small.get_config(name).model)
    assert least < parameters(model) < most


@pytest.mark.parametrize(
    ("fields", "frames", "voxels", "message"),
    [
        ({}, (1, 2, 20, 16, 3), (1, 2, 8, 8, BINS), "Net.*: frames have .*multiples of 8"),
        ({}, (1, 2, 16, 16, 4), (1, 2, 8, 8, BINS), r"want \(B, T, H, W, 3\)"),
        ({}, (1, 2, 16, 16, 3), (1, 3, 8, 8, BINS), r"want \(1, 2, H, W, 4\)"),
        ({}, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS + 1), r"want \(1, 2, H, W, 4\)"),
        ({"remat": "attn"}, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS), "remat is 'attn'"),
        ({"channels": (8, 8)}, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS), r"channels \(8, 8\)"),
        ({"kernels": "fast"}, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS), "implementation 'fast'"),
    ],
)
def test_what_does_not_fit_is_named(unet, fields, frames, voxels, message):
    with pytest.raises(ValueError, match=message):
        abstract_init(unet(**fields), frames, voxels)


def test_blocks_of_too_few_scales_are_named():
    model = ShiftUNet(BINS, **FIELDS[ShiftUNet] | {"encoder_blocks": (1, 2)})
    with pytest.raises(ValueError, match=r"blocks are \(1, 2\)"):
        abstract_init(model, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS))


def parameters(model):
    shapes = abstract_init(model, (1, 1, 8, 8, 3), (1, 1, 4, 4, model.spike_bins))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def abstract_init(model, *shapes):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)
