"""PSNR and SSIM as image restoration reports them: RGB or Y, float or rounded to 8 bit.

Images are NumPy arrays in [0, 1], [H, W] or [..., H, W, C] with C of 1 or 3, channels last. Each
function treats one image and returns a float; average over frames yourself, as the benchmarks do.
"""

import cv2
import numpy as np
from jaxtyping import Float

# Wang et al., "Image quality assessment", IEEE TIP 2004: an 11 x 11 Gaussian window of 1.5 pixels.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def psnr(
    image: np.ndarray, reference: np.ndarray, *, y_channel: bool = False, as_uint8: bool = False
) -> float:
    """Peak signal to noise ratio in dB, over all pixels and channels together.

    Args:
      image, reference: equal shapes, floating point in [0, 1] or uint8 (which is divided by 255).
      y_channel: compare luma (`rgb_to_y`) instead of RGB; needs three channels.
      as_uint8: cut and round both to 8 bit first, as scores of saved files are.

    Returns:
      dB; infinity for equal images.

    Raises:
      ValueError: shapes differ, no image shape, values far outside [0, 1] or not finite.
    """
    image, reference = _prepared(image, reference, y_channel, as_uint8)
    error = float(np.mean(np.square(image - reference)))
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))


def ssim(
    image: np.ndarray, reference: np.ndarray, *, y_channel: bool = False, as_uint8: bool = False
) -> float:
    """Structural similarity, averaged over the valid region and over channels.

    Gaussian window of 11 x 11, sigma 1.5; only positions where the window lies inside the image
    count. Equal to scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)`, and to the MATLAB code of the paper.

    Args:
      image, reference, y_channel, as_uint8: as in `psnr`, but one image: [H, W] or [H, W, C].

    Raises:
      ValueError: as `psnr`, or an image smaller than the window.
    """
    image, reference = _prepared(image, reference, y_channel, as_uint8)
    if image.ndim > 3:
        raise ValueError(f"found shape {image.shape}, wanted one image: [H, W] or [H, W, C]")
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"found an image of {image.shape[0]} x {image.shape[1]}, "
            f"wanted at least {SSIM_WINDOW} x {SSIM_WINDOW}"
        )
    return float(np.mean(_ssim_map(image, reference)))


def rgb_to_y(image: np.ndarray) -> Float[np.ndarray, "*n H W"]:
    """Luma of ITU-R BT.601 in studio swing, as MATLAB's `rgb2ycbcr` has it, divided by 255.

    Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255, so 16/255 for black and 235/255 for white.
    This is what restoration benchmarks mean by "the Y channel"; it is not the 0.299, 0.587, 0.114
    gray that drives a spike camera.

    Args:
      image: [..., H, W, 3] RGB, floating point in [0, 1] or uint8.

    Returns:
      float64 [..., H, W], 16/255 to 235/255.

    Raises:
      ValueError: no three channels.
    """
    image = _as_float(image)
    if image.ndim < 3 or image.shape[-1] != 3:
        raise ValueError(f"found shape {image.shape}, wanted [..., H, W, 3]")
    return (16.0 + image @ np.array([65.481, 128.553, 24.966])) / 255.0


def _ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    margin = SSIM_WINDOW // 2
    kernel = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA, cv2.CV_64F)

    def local_mean(values: np.ndarray) -> np.ndarray:
        blurred = cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel)
        return blurred[margin:-margin, margin:-margin]

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x * mean_x
    variance_y = local_mean(y * y) - mean_y * mean_y
    covariance = local_mean(x * y) - mean_x * mean_y
    # Equation 13 of the paper, for a data range of 1.
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def _prepared(
    image: np.ndarray, reference: np.ndarray, y_channel: bool, as_uint8: bool
) -> tuple[np.ndarray, np.ndarray]:
    image, reference = np.asarray(image), np.asarray(reference)
    if image.shape != reference.shape:
        raise ValueError(f"shapes differ: found {image.shape}, wanted {reference.shape}")
    if image.ndim < 2 or 0 in image.shape or (image.ndim > 2 and image.shape[-1] not in (1, 3)):
        raise ValueError(f"found shape {image.shape}, wanted [H, W] or [..., H, W, 1 or 3]")
    pair = []
    for values in (image, reference):
        values = _as_float(values)
        if as_uint8:
            values = np.round(np.clip(values, 0, 1) * 255) / 255
        pair.append(rgb_to_y(values) if y_channel else values)
    return pair[0], pair[1]


def _as_float(values: np.ndarray) -> np.ndarray:
    """float64 in [0, 1]: metrics of nearly equal images lose digits in float32."""
    values = np.asarray(values)
    if values.dtype == np.uint8:
        return values / 255.0
    values = values.astype(np.float64)
    low, high = values.min(initial=0), values.max(initial=0)
    # A network overshoots a little; 0..255 is a mistake worth stopping at.
    if not (low > -4 and high < 5):
        raise ValueError(f"found values {low:.4g} to {high:.4g}, wanted images in [0, 1]")
    return values
