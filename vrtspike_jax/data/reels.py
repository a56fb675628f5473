"""Clips that the accelerator cuts from a bank of reels; the host only says which.

The counterpart of `vrtspike_jax.data.scenes` for `config.data.scenes.on_device`.
"""

import functools

import ml_collections
import numpy as np

from vrtspike_jax.data.augment import Augmentation
from vrtspike_jax.data.clips import ClipArrays
from vrtspike_jax.data.geometry import spike_size
from vrtspike_jax.data.loading import MAX_REPLACEMENTS, NO_CLIP

# Steps of an exposure where config.data.steps is 0, as rendered clips have them.
DEFAULT_STEPS = 88


def clip_shape(config: ml_collections.ConfigDict):
    """The `vrtspike_jax.scenes.expose_jax.ClipShape` of training clips cut from reels.

    Raises:
      ValueError: no crop size, steps of another camera, or a scene option that makes no sense.
    """
    from vrtspike_jax.scenes import scene_options
    from vrtspike_jax.scenes.expose_jax import ClipShape

    side = config.crop_size
    if not side:
        raise ValueError("config.data.crop_size is 0: config.data.scenes.on_device needs crops")
    if config.voxel.steps not in (0, config.steps):
        raise ValueError(
            f"config.data.voxel.steps is {config.voxel.steps}: config.data.scenes.on_device wanted "
            f"0, for clips as of a camera of config.data.steps={config.steps}"
        )
    options = scene_options(**config.scenes.render.to_dict())
    options.check_exposures(config.steps)
    return ClipShape(
        frames=config.clip_length,
        size=(side, side),
        spike_size=spike_size(side, side, tuple(config.spike_scale)),
        steps=config.steps or DEFAULT_STEPS,
        bins=config.voxel.bins,
        choices=tuple(sorted(set(options.exposure_steps))),
    )


class ReelClips:
    """Places in a bank of reels; stands where a `ClipSource` does in a training stream.

    Args:
      config: `config.data`.

    Raises:
      ValueError: an option that makes no sense, a film or photograph that is not there or is
        unusable, or a size that reels cannot give.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        # Not imported above: workers that read files need no renderer.
        from vrtspike_jax.scenes import check_media, scene_options

        self._config = config
        self.options = scene_options(**config.scenes.render.to_dict())
        check_media("train", self.options)
        self.shape = clip_shape(config)
        self._augmentation = Augmentation(config.flip, config.rotate, config.reverse_time)

    @functools.cached_property
    def bank(self):
        """The `vrtspike_jax.scenes.bank.Bank`; drawn when first asked for, the same every time."""
        from vrtspike_jax.scenes.bank import load_bank

        side = self.shape.size[0]
        return load_bank(
            "train",
            self.options,
            scenes=self._config.scenes.reels,
            exposures=self.shape.frames,
            subframes=self.options.film_exposure[1],
            side=round(side * self.options.film_shrink[1]),
            least_side=side,
        )

    def __len__(self) -> int:
        return self._config.scenes.train_clips

    def name(self, i: int) -> str:
        return f"reel_clip_{i:07d}/0"

    def __call__(self, index: int, rng: np.random.Generator) -> ClipArrays:
        """Draws clip `index`: the fields of a `vrtspike_jax.scenes.expose_jax.Pick`.

        Also `index` and `skipped`, as `LoadClip` gives them.
        """
        from vrtspike_jax.scenes.description import odd, sample_cameras
        from vrtspike_jax.scenes.textures import colour_change

        bank, options, frames = self.bank, self.options, self.shape.frames
        film = bool(bank.films) and (not bank.scenes or rng.uniform() < options.film_share)
        # Films are drawn equally often, however many reels they fill.
        reels = bank.films[rng.integers(len(bank.films))] if film else bank.scenes
        reel = reels[rng.integers(len(reels))]
        length, *size = bank.sizes[reel].tolist()
        low, high = options.film_exposure
        most = length // frames
        exposure = odd(rng.uniform(low, high), min(most - 1 + most % 2, high), min(most, low))
        side = self.shape.size[0]
        low, high = options.film_shrink
        shrink = np.exp(rng.uniform(np.log(low), np.log(min(high, min(size) / side))))
        view = self._augmentation.draw(rng)
        colours = np.eye(3, 4)
        if film and options.recolor:
            mean = float(bank.pictures[reel, 0, : size[0] : 8, : size[1] : 8].mean())
            colours = colour_change(rng, mean, options.recolor)
        return {
            "reel": np.int32(reel),
            "first": np.int32(rng.integers(length - frames * exposure + 1)),
            "exposure": np.int32(exposure),
            "corner": np.float32([rng.uniform(0, have - side * shrink) for have in size]),
            "shrink": np.float32(shrink),
            "reverse": np.bool_(view.reverse),
            "mirror_rows": np.bool_(view.mirror_rows),
            "mirror_cols": np.bool_(view.mirror_cols),
            "turn": np.bool_(view.turn),
            "colours": np.float32(colours),
            **{name: _plain(v) for name, v in sample_cameras(rng, exposure, options).items()},
            "index": np.int64(index),
            "skipped": np.full(MAX_REPLACEMENTS, NO_CLIP, np.int64),
        }


def _plain(value: int | float) -> np.ndarray:
    """Numbers as JAX takes them; a seed keeps its low 32 bits."""
    return np.float32(value) if isinstance(value, float) else np.uint32(value & 0xFFFFFFFF)
