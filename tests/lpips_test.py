import numpy as np
import pytest
from safetensors.numpy import save_file

from vrtspike_jax.lpips import Lpips

# VGG16's convolutions up to relu5_3: index in `features`, input channels, output channels.
PLAN = [
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256),
    (14, 256, 256), (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512),
    (26, 512, 512), (28, 512, 512),
]  # fmt: skip
TAPS = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    rng = np.random.default_rng(0)
    vgg = {}
    for index, inputs, outputs in PLAN:
        deviation = np.sqrt(2 / (9 * inputs))
        kernel = rng.normal(0, deviation, (outputs, inputs, 3, 3))
        vgg[f"features.{index}.weight"] = kernel.astype(np.float32)
        vgg[f"features.{index}.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
    linear = {
        f"lin{i}.model.1.weight": rng.random((1, c, 1, 1)).astype(np.float32)
        for i, c in enumerate((64, 128, 256, 512, 512))
    }
    folder = tmp_path_factory.mktemp("weights")
    save_file(vgg, folder / "vgg.safetensors")
    np.savez(folder / "lpips.npz", **linear)
    return folder / "vgg.safetensors", folder / "lpips.npz", vgg, linear


def _features(vgg, image):
    """The published network step by step, on channels-first [-1, 1] images."""
    x = np.moveaxis(2.0 * image - 1, -1, 0)
    x = (x - np.reshape([-0.030, -0.088, -0.188], (3, 1, 1))) / np.reshape(
        [0.458, 0.448, 0.450], (3, 1, 1)
    )
    found = []
    for index, _, _ in PLAN:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        kernel, bias = vgg[f"features.{index}.weight"], vgg[f"features.{index}.bias"]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("chwyx,ocyx->ohw", windows, kernel, optimize=True)
        x = np.maximum(x + bias[:, None, None], 0)
        if index in TAPS:
            found.append(x)
            c, h, w = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(c, h // 2, 2, w // 2, 2).max((2, 4))
    return found


def test_lpips_equals_the_published_network_step_by_step(files):
    vgg_path, linear_path, vgg, linear = files
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 16, 16, 3))
    wanted = 0.0
    for i, (x, y) in enumerate(zip(_features(vgg, a), _features(vgg, b), strict=True)):
        x, y = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in (x, y))
        weighted = linear[f"lin{i}.model.1.weight"].reshape(-1, 1, 1) * (x - y) ** 2
        wanted += weighted.sum(0).mean()
    distance = Lpips(vgg_path, linear_path)
    assert distance(a, b) == pytest.approx(wanted, rel=1e-4)
    assert distance(a, a) == pytest.approx(0, abs=1e-9)


def test_wrong_weights_are_named(files, tmp_path):
    vgg_path, _, _, linear = files
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in linear.items() if "lin3" not in k})
    with pytest.raises(ValueError, match=r"bad\.npz: found nothing as lin3"):
        Lpips(vgg_path, tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="no such file"):
        Lpips(vgg_path, tmp_path / "missing.npz")
