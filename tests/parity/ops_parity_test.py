"""Operations equal to the published ones to 1e-5, values and gradients."""

import golden_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.ops import deform_conv2d, flow_warp

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def run():
    return golden_runs.load("ops")[1]


@pytest.mark.parametrize(
    ("mode", "padding"), [("bilinear", "zeros"), ("bilinear", "border"), ("nearest4", "zeros")]
)
def test_flow_warp_equals_the_published(run, mode, padding):
    x = jnp.asarray(golden_runs.channels_last(run["x"], 1))
    out = flow_warp(x, jnp.asarray(run["flow"]), mode=mode, padding=padding)
    want = golden_runs.channels_last(run[f"warp_{mode}_{padding}"], 1)
    np.testing.assert_allclose(out, want, atol=TOLERANCE)


@pytest.fixture(scope="module")
def convolution(run):
    """Arguments of `deform_conv2d` in our layout."""
    n, _, h, w = run["x"].shape
    offset = run["offset"].reshape(n, -1, 9, 2, h, w).transpose(0, 4, 5, 1, 2, 3)
    mask = run["mask"].reshape(n, -1, 9, h, w).transpose(0, 3, 4, 1, 2)
    x = golden_runs.channels_last(run["x"], 1)
    arrays = x, offset, mask, run["weight"].transpose(2, 3, 1, 0), run["bias"]
    return tuple(map(jnp.asarray, arrays))


def test_deform_conv2d_equals_torchvision(run, convolution):
    out = deform_conv2d(*convolution)
    want = golden_runs.channels_last(run["deform_out"], 1)
    np.testing.assert_allclose(out, want, atol=TOLERANCE)


def test_gradients_of_deform_conv2d_equal_torchvision(run, convolution):
    cotangent = jnp.asarray(golden_runs.channels_last(run["cotangent"], 1))
    x, offset, mask, weight, bias = jax.vjp(deform_conv2d, *convolution)[1](cotangent)
    n, h, w, _ = x.shape
    found = {
        "g_x": np.moveaxis(x, -1, 1),
        "g_offset": np.transpose(offset, (0, 3, 4, 5, 1, 2)).reshape(n, -1, h, w),
        "g_mask": np.transpose(mask, (0, 3, 4, 1, 2)).reshape(n, -1, h, w),
        "g_weight": np.transpose(weight, (3, 2, 0, 1)),
        "g_bias": bias,
    }
    for name, gradient in found.items():
        # Relative to the largest entry, as sums over all pixels are among them.
        scale = max(1.0, np.abs(run[name]).max())
        np.testing.assert_allclose(gradient, run[name], atol=TOLERANCE * scale, err_msg=name)


def test_groups_of_a_deformable_convolution_see_their_own_channels(convolution):
    x, offset, mask, weight, bias = convolution
    # 3 groups of 4 channels, across 4 deformable groups of 3 channels each.
    weight, bias = weight[:, :, :4, :15], bias[:15]
    together = deform_conv2d(x, offset, mask, weight, bias)
    for i in range(3):
        entering, leaving = slice(4 * i, 4 * i + 4), slice(5 * i, 5 * i + 5)
        deformable = np.arange(12)[entering] // 3
        alone = deform_conv2d(
            x[..., entering],
            offset[..., deformable, :, :],
            mask[..., deformable, :],
            weight[..., leaving],
            bias[leaving],
        )
        np.testing.assert_allclose(together[..., leaving], alone, atol=TOLERANCE)


def test_flow_warp_by_whole_pixels_shifts_the_image():
    x = jnp.asarray(np.random.Generator(np.random.PCG64(1)).standard_normal((1, 9, 11, 2)))
    flow = jnp.broadcast_to(jnp.array([2.0, -1.0]), (1, 9, 11, 2))
    for mode, copies in (("bilinear", 1), ("nearest4", 4)):
        out = flow_warp(x, flow, mode=mode)
        shifted = np.zeros_like(x)
        shifted[:, 1:, :-2] = x[:, :-1, 2:]
        np.testing.assert_allclose(out, np.tile(shifted, copies), atol=1e-6)
    border = flow_warp(x, flow, padding="border")
    np.testing.assert_allclose(border[:, 0, :-2], x[:, 0, 2:], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "cubic"}, "cubic"),
        ({"padding": "reflection"}, "reflection"),
        ({"flow": jnp.zeros((1, 4, 4, 3))}, "want"),
    ],
)
def test_flow_warp_names_what_it_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        flow_warp(**{"x": jnp.zeros((1, 4, 4, 1)), "flow": jnp.zeros((1, 4, 4, 2))} | arguments)


def test_deform_conv2d_names_shapes_that_do_not_fit(convolution):
    x, offset, mask, weight, bias = convolution
    for arguments in (
        (x, offset[:, :-1], mask, weight, bias),
        (x, offset, mask[..., :8], weight, bias),
        (x[..., :-1], offset, mask, weight, bias),
        (x, offset, mask, weight[:2], bias),
    ):
        with pytest.raises(ValueError, match="deform_conv2d"):
            deform_conv2d(*arguments)
