"""Clips rendered on the fly; nothing is read from disk."""

import ml_collections

from vrtspike_jax.data.clips import ClipArrays
from vrtspike_jax.data.geometry import Crop, Geometry, spike_size, whole_frame

# Seeds of clips to score lie beyond those of any clip to train on.
EVAL_SEED = 2**30


class SceneClips:
    """A `ClipSource` of moving scenes, one a seed.

    Args:
      config: `config.data`; `scenes`, `clip_length`, `spike_scale` and `steps` are read.
      held_out: whether to give the clips for scoring, which training never sees.
    """

    def __init__(self, config: ml_collections.ConfigDict, held_out: bool = False):
        scenes = config.scenes
        self._count = scenes.eval_clips if held_out else scenes.train_clips
        self._first_seed = EVAL_SEED if held_out else 0
        size = (scenes.height, scenes.width)
        scale = tuple(config.spike_scale)
        self._geometry = Geometry(size, spike_size(*size, scale))
        self._arguments = {
            "num_frames": config.clip_length,
            "height": scenes.height,
            "width": scenes.width,
            "spike_scale": scale[0],
            # The splits share no photographs and no generated textures.
            "split": "eval" if held_out else "train",
            **({"steps": config.steps} if config.steps else {}),
            **scenes.render.to_dict(),
        }
        if scale[0] != scale[1]:
            raise ValueError(
                f"config.data.spike_scale: found {scale}, wanted two equal numbers with "
                "source='scenes'"
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> ClipArrays:
        return self.read(i, whole_frame(self._geometry))

    def name(self, i: int) -> str:
        return f"scene_{self._first_seed + i:08d}/0"

    def geometry(self, i: int) -> Geometry:
        return self._geometry

    def geometries(self) -> dict[str, Geometry]:
        return {"scenes": self._geometry}

    def read(self, i: int, crop: Crop) -> ClipArrays:
        # Not imported above: workers that read files need no renderer.
        from vrtspike_jax.scenes import render_clip

        if not 0 <= i < self._count:
            raise IndexError(f"clip {i} of {self._count}")
        clip = render_clip(self._first_seed + i, **self._arguments)
        rows, cols = slice(*crop.rows), slice(*crop.cols)
        spike_rows, spike_cols = slice(*crop.spike_rows), slice(*crop.spike_cols)
        return {
            "blur": clip["blur"][:, rows, cols],
            "sharp": clip["sharp"][:, rows, cols],
            "spikes": clip["spikes"][:, :, spike_rows, spike_cols],
        }
