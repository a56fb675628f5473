import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vrtspike_jax.metrics import psnr, rgb_to_y, ssim


def pair(shape=(40, 53, 3), noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    # Smooth and textured parts, so that structure and luminance both vary.
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape[:2])
    clean = (0.5 + 0.4 * np.sin(9 * x * y + 4 * x))[..., None] * np.ones(3)
    clean = np.clip(clean + rng.normal(0, 0.05, clean.shape), 0, 1)
    clean = clean if len(shape) == 3 else clean[..., 0]
    return np.clip(clean + rng.normal(0, noise, clean.shape), 0, 1), clean


def reference_ssim(a, b, **options):
    """scikit-image's mean runs over the valid region, like ours."""
    return structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, **options
    )


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_ssim_equals_scikit_image(noise):
    a, b = pair(noise=noise)
    assert ssim(a, b) == pytest.approx(reference_ssim(a, b, channel_axis=-1), abs=1e-10)
    a, b = pair((11, 30), noise=noise)
    assert ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-10)


def test_ssim_is_the_mean_of_the_channels():
    a, b = pair()
    a[..., 0] = b[..., 0]
    parts = [ssim(a[..., c], b[..., c]) for c in range(3)]
    assert parts[0] == pytest.approx(1)
    assert ssim(a, b) == pytest.approx(np.mean(parts))


def test_psnr_equals_scikit_image_and_the_formula():
    a, b = pair()
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1))
    assert psnr(np.full((4, 4), 0.6), np.full((4, 4), 0.5)) == pytest.approx(20)


def test_equal_images_score_best():
    a, _ = pair()
    assert psnr(a, a) == float("inf")
    assert ssim(a, a) == pytest.approx(1)


def test_y_is_bt601_in_studio_swing():
    colours = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]], np.float64)
    # What MATLAB's rgb2ycbcr gives for these colours, in 0..255 before rounding.
    expected = [16, 235, 81.481, 144.553, 40.966]
    np.testing.assert_allclose(rgb_to_y(colours)[0] * 255, expected)
    np.testing.assert_allclose(rgb_to_y(np.uint8(colours * 255))[0] * 255, expected)


def test_y_scores_are_scores_of_the_y_images():
    a, b = pair()
    assert psnr(a, b, y_channel=True) == pytest.approx(psnr(rgb_to_y(a), rgb_to_y(b)))
    assert ssim(a, b, y_channel=True) == pytest.approx(reference_ssim(rgb_to_y(a), rgb_to_y(b)))
    # The swing is 219 of 255 wide, so equal errors weigh less than in RGB.
    assert psnr(np.ones((4, 4, 3)), np.zeros((4, 4, 3)), y_channel=True) == pytest.approx(
        20 * np.log10(255 / 219)
    )


def test_rounding_scores_what_a_saved_file_would():
    a, b = pair(noise=0.2)
    a = a * 1.2 - 0.1  # overshoots on both sides
    saved = np.uint8(np.round(np.clip(a, 0, 1) * 255)), np.uint8(np.round(b * 255))
    for metric in (psnr, ssim):
        for y_channel in (False, True):
            rounded = metric(a, b, y_channel=y_channel, as_uint8=True)
            assert rounded == pytest.approx(metric(*saved, y_channel=y_channel))
            assert rounded != metric(a, b, y_channel=y_channel)


def test_float32_loses_nothing_against_float64():
    a, b = pair(noise=1e-4)
    single = psnr(a.astype(np.float32), b.astype(np.float32))
    assert single == pytest.approx(psnr(a, b), abs=0.01)


def test_results_are_plain_floats():
    a, b = pair()
    assert type(psnr(a, b)) is float
    assert type(ssim(a, b)) is float


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("image", "reference"),
    [
        (np.zeros((20, 20, 3)), np.zeros((20, 21, 3))),
        (np.zeros((20, 20, 3)), np.zeros((20, 20))),
        (np.zeros((20, 20, 4)), np.zeros((20, 20, 4))),
        (np.zeros((20, 20)) + 200.0, np.zeros((20, 20))),
        (np.full((20, 20), np.nan), np.zeros((20, 20))),
        (np.zeros((0, 20)), np.zeros((0, 20))),
        (np.zeros(20), np.zeros(20)),
    ],
)
def test_bad_images_raise(metric, image, reference):
    with pytest.raises(ValueError, match="found"):
        metric(image, reference)


def test_an_image_smaller_than_the_window_raises():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(np.zeros((10, 30)), np.zeros((10, 30)))


def test_y_of_a_gray_image_raises():
    with pytest.raises(ValueError, match=r"wanted \[..., H, W, 3\]"):
        psnr(np.zeros((20, 20)), np.zeros((20, 20)), y_channel=True)
