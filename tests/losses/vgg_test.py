import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.signal import correlate2d

from vrtspike_jax.losses import load_vgg16, perceptual_loss, vgg16_features

CHANNELS = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128)]
DEEPER = [(10, 128, 256), (12, 256, 256), (14, 256, 256)]


def torchvision_weights(layers, seed=0):
    rng = np.random.default_rng(seed)
    weights = {}
    for index, inputs, outputs in layers:
        scale = (2 / (9 * inputs)) ** 0.5
        kernel = rng.normal(0, scale, (outputs, inputs, 3, 3))
        weights[f"features.{index}.weight"] = kernel.astype(np.float32)
        weights[f"features.{index}.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    weights = torchvision_weights(CHANNELS)
    save_file(weights, path)
    return path, weights


def naive_features(weights, image, last):
    """One image (H, W, 3) through the convolutions up to `last`, a plane at a time."""
    x = (image - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    planes = list(np.moveaxis(x, -1, 0))
    for index, _, _ in CHANNELS:
        kernel, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
        planes = [
            np.maximum(
                sum(correlate2d(p, k, mode="same") for p, k in zip(planes, kernels, strict=True))
                + bias[o],
                0,
            )
            for o, kernels in enumerate(kernel)
        ]
        if index == last:
            return np.stack(planes, -1)
        if index in (2, 7):
            planes = [
                p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2]
                .reshape(p.shape[0] // 2, 2, p.shape[1] // 2, 2)
                .max((1, 3))
                for p in planes
            ]
    raise AssertionError(last)


def test_features_equal_a_plane_by_plane_convolution(shallow):
    path, weights = shallow
    image = np.random.default_rng(3).random((7, 10, 3))  # sizes that pooling does not divide
    params = load_vgg16(path, ("relu2_2",))
    first, second = vgg16_features(params, jnp.array(image), ("relu1_2", "relu2_2"))
    np.testing.assert_allclose(first[0], naive_features(weights, image, 2), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(second[0], naive_features(weights, image, 7), rtol=1e-3, atol=1e-4)


def test_loss_is_the_mean_absolute_feature_difference_over_batch_and_time(shallow):
    path, weights = shallow
    rng = np.random.default_rng(4)
    restored, sharp = rng.random((2, 2, 1, 6, 6, 3))
    params = load_vgg16(path, ("relu1_2",))
    expected = np.mean(
        [
            np.abs(naive_features(weights, a, 2) - naive_features(weights, b, 2)).mean()
            for a, b in zip(restored[:, 0], sharp[:, 0], strict=True)
        ]
    )
    loss = perceptual_loss(params, jnp.array(restored), jnp.array(sharp), ("relu1_2",))
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_relu3_3_has_256_channels_at_a_quarter_and_its_gradient_reaches_the_image(tmp_path):
    path = tmp_path / "vgg.npz"
    np.savez(path, **torchvision_weights(CHANNELS + DEEPER))
    params = load_vgg16(path)
    image = jnp.array(np.random.default_rng(5).random((1, 2, 16, 24, 3)))
    (features,) = vgg16_features(params, image, ("relu3_3",))
    assert features.shape == (2, 4, 6, 256)
    gradient = jax.grad(lambda x: perceptual_loss(params, x, image * 0.5))(image)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_bfloat16_compute_stays_near_float32(shallow):
    params = load_vgg16(shallow[0], ("relu2_2",))
    a, b = jnp.array(np.random.default_rng(6).random((2, 1, 16, 16, 3)))
    exact = perceptual_loss(params, a, b, ("relu2_2",))
    rough = perceptual_loss(params, a, b, ("relu2_2",), jnp.bfloat16)
    assert rough.dtype == jnp.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.02)


def test_a_missing_file_says_where_it_looked_and_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)none\.safetensors.*vrtspike convert.*vgg_weight=0"):
        load_vgg16(tmp_path / "none.safetensors")


def test_a_damaged_file_a_wrong_kind_and_a_wrong_shape_are_named(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 not a header")
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        load_vgg16(damaged)
    kind = tmp_path / "vgg16.pth"
    kind.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"\.pth"):
        load_vgg16(kind)
    weights = torchvision_weights(CHANNELS)
    weights["features.2.bias"] = np.zeros(3, np.float32)
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, **weights)
    with pytest.raises(ValueError, match=r"features\.2\.bias has shape \(3,\), wanted \(64,\)"):
        load_vgg16(wrong, ("relu1_2",))
    short = tmp_path / "short.npz"
    np.savez(short, **torchvision_weights(CHANNELS))
    with pytest.raises(ValueError, match=r"no entry 'features\.10\.weight'"):
        load_vgg16(short, ("relu3_3",))


def test_an_unknown_layer_lists_the_known_ones(shallow):
    with pytest.raises(ValueError, match=r"relu9_9.*relu3_3"):
        load_vgg16(shallow[0], ("relu9_9",))
