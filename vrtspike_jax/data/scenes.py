"""Clips rendered on the fly; nothing is read from disk."""

import dataclasses

import ml_collections

from vrtspike_jax.data.clips import ClipArrays
from vrtspike_jax.data.geometry import Crop, Geometry, spike_size, whole_frame


class SceneClips:
    """A `ClipSource` of moving scenes, one a seed.

    Args:
      config: `config.data`; `scenes`, `clip_length`, `spike_scale` and `steps` are read.
      held_out: whether to give the clips for scoring, which share no photograph, texture or seed
        with those for training.

    Raises:
      ValueError: an option of the renderer that does not exist or makes no sense, or a photograph
        or film that is not there.
    """

    def __init__(self, config: ml_collections.ConfigDict, held_out: bool = False):
        # Not imported above: workers that read files need no renderer.
        from vrtspike_jax.scenes import check_media, scene_options

        scenes = config.scenes
        self._count = scenes.eval_clips if held_out else scenes.train_clips
        self._split = "eval" if held_out else "train"
        size, scale = (scenes.height, scenes.width), tuple(config.spike_scale)
        self._geometry = Geometry(size, spike_size(*size, scale))
        options = scene_options(**scenes.render.to_dict())
        if held_out:
            options = dataclasses.replace(options, exposure_steps=())
        options.check_exposures(config.steps)
        # Steps that the spikes of a clip are counted for, where clips have different ones.
        self.trained_steps = config.steps if options.exposure_steps else 0
        self._arguments = {
            "num_frames": config.clip_length,
            "height": scenes.height,
            "width": scenes.width,
            "spike_scale": scale,
            "split": self._split,
            "options": options,
        }
        check_media(self._split, options)
        if config.steps:
            self._arguments["steps"] = config.steps

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> ClipArrays:
        return self.read(i, whole_frame(self._geometry))

    def name(self, i: int) -> str:
        return f"{self._split}_scene_{i:07d}/0"

    def geometry(self, i: int) -> Geometry:
        return self._geometry

    def geometries(self) -> dict[str, Geometry]:
        return {"scenes": self._geometry}

    def read(self, i: int, crop: Crop) -> ClipArrays:
        from vrtspike_jax.scenes import render_clip

        if not 0 <= i < self._count:
            raise IndexError(f"clip {i} of {self._count}")
        clip = render_clip(i, **self._arguments)
        rows, cols = slice(*crop.rows), slice(*crop.cols)
        spike_rows, spike_cols = slice(*crop.spike_rows), slice(*crop.spike_cols)
        return {
            "blur": clip["blur"][:, rows, cols],
            "sharp": clip["sharp"][:, rows, cols],
            "spikes": clip["spikes"][:, :, spike_rows, spike_cols],
        }
