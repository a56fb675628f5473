"""Small real files for the commands to work on, and a model whose answer is known beforehand."""

import sys
from pathlib import Path

import cv2
import flax.linen as nn
import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import baseline
from vrtspike_jax.models import build
from vrtspike_jax.spikes import simulate, write_dat
from vrtspike_jax.training import checkpoint_files
from vrtspike_jax.training.checkpoints import CheckpointStore, param_shapes
from vrtspike_jax.training.config import to_plain
from vrtspike_jax.training.optimizer import gradient_transformation
from vrtspike_jax.training.state import create_state


class Gain(nn.Module):
    """Frames times a parameter, so that a gain of 1 gives the blurred frames back."""

    spike_bins: int = 4
    upscale: int = 1
    pa_frames: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames, voxels, train=False):
        gain = self.param("gain", nn.initializers.ones, (1,))
        flow = self.param("spynet", nn.initializers.zeros, (1,))  # what training slows down
        return frames * gain + flow * jnp.mean(voxels)


class PlainGain(nn.Module):
    """The same without a spike branch, as a plain VRT is."""

    upscale: int = 1
    pa_frames: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames, train=False):
        self.param("spynet", nn.initializers.zeros, (1,))
        return frames * self.param("gain", nn.initializers.ones, (1,))


def register():
    """Makes the models known as config.model.name = "gain" and "plain_gain"."""
    build.MODELS["gain"] = lambda fields: build.construct(Gain, fields, "config.model")
    build.MODELS["plain_gain"] = lambda fields: build.construct(PlainGain, fields, "config.model")


def write_checkpoint(workdir: Path, gain: float = 1.0, spikes: bool = True) -> Path:
    """A training workdir with one real checkpoint."""
    register()
    config = baseline.get_config()
    config.unlock()
    del config.model
    config.model = {"name": "gain", "spike_bins": 4, "dtype": "float32"}
    if not spikes:
        config.model = {"name": "plain_gain", "dtype": "float32"}
    config.data.voxel.bins = 4
    config.loss.vgg_weight = 0.0
    params = {"gain": jnp.full((1,), gain), "spynet": jnp.zeros((1,))}
    store = CheckpointStore(workdir / "checkpoints")
    meta = checkpoint_files.Meta(
        step=7,
        config=to_plain(config),
        versions={"jax": jax.__version__},
        metrics={"psnr_rgb": 30.0},
        best=None,
        last_eval_step=7,
        params=param_shapes(params),
    )
    config.optim.ema_decay = 0.0
    state = create_state(params, gradient_transformation(config.optim), config.optim)
    store.save(state, b"{}", meta)
    store.close()
    return workdir


def make_frames(count: int, size: tuple[int, int], dtype=np.uint8, seed: int = 0) -> np.ndarray:
    """Smooth moving colours with fine noise, [T,H,W,3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    phase = np.arange(count, dtype=np.float32)[:, None, None, None]
    waves = np.stack([np.sin(x / 17), np.cos(y / 23), np.sin((x + y) / 31)], -1)
    frames = 0.5 + 0.4 * np.sin(waves * 3 + phase * 0.3)
    frames += rng.normal(0, 0.02, frames.shape)
    return np.round(np.clip(frames, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def make_spikes(frames: np.ndarray, size: tuple[int, int], steps: int = 16) -> np.ndarray:
    """What a camera would have fired, [T,S,Hs,Ws]."""
    unit = frames.astype(np.float32) / np.iinfo(frames.dtype).max
    gray = unit @ np.float32([0.299, 0.587, 0.114])
    small = np.stack([cv2.resize(g, size[::-1], interpolation=cv2.INTER_AREA) for g in gray])
    fired = simulate(np.repeat(small, steps, 0), 2.0, 0)
    return fired.reshape(len(frames), steps, *size)


def write_images(folder: Path, frames: np.ndarray, suffix: str = ".png") -> Path:
    """frames -> folder/00000000.png ..."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{index:08d}{suffix}"), frame[..., ::-1])
    return folder


def write_spikes(folder: Path, spikes: np.ndarray) -> Path:
    """One .dat a frame."""
    folder.mkdir(parents=True)
    for index, exposure in enumerate(spikes):
        write_dat(folder / f"{index:08d}.dat", exposure)
    return folder


def write_sequence(folder: Path, count: int, size, dtype=np.uint8, steps: int = 16):
    """A sequence on disk with spikes at half resolution; returns (blur, spike, frames)."""
    frames = make_frames(count, size, dtype)
    spikes = make_spikes(frames, (size[0] // 2, size[1] // 2), steps)
    blur = write_images(folder / "blur", frames)
    return blur, write_spikes(folder / "spike", spikes), frames


def write_video(path: Path, frames: np.ndarray, fps: float = 25) -> Path:
    """A lossless video, so that what comes back can be compared."""
    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264rgb", quality=None,
        macro_block_size=1, pix_fmt_out="rgb24", output_params=["-crf", "0"],
    )  # fmt: skip
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def read_images(folder: Path, suffix: str = ".png") -> np.ndarray:
    """All images of a folder in order, [T,H,W,3]."""
    files = sorted(folder.glob(f"*{suffix}"))
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
    return np.stack([cv2.imread(str(file), flags)[..., ::-1] for file in files])


def write_dataset(root: Path, split: str = "test", sequences=("a", "b"), count: int = 4):
    """A data set in the plain layout, frames of 64 x 80; returns {sequence: (blur, sharp)}."""
    content = {}
    for number, name in enumerate(sequences):
        sharp = make_frames(count + number, (64, 80), seed=number)
        blur = np.stack([cv2.blur(frame, (5, 5)) for frame in sharp])
        folder = root / split / name
        write_images(folder / "sharp", sharp)
        write_images(folder / "blur", blur)
        write_spikes(folder / "spike", make_spikes(sharp, (32, 40)))
        content[name] = (blur, sharp)
    return content
