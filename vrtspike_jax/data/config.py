"""The settings of `config.data`: every field the data pipeline reads, with unit and range."""

import ml_collections

from vrtspike_jax.names import suggestion

SOURCES = ("plain", "tfds", "scenes")
LAYOUTS = ("plain", "gopro", "x4k")
VERIFY = ("headers", "full")


def default_data_config() -> ml_collections.ConfigDict:
    """The defaults of `config.data`: files in the plain layout, crops and bins of the baseline.

    Configs start from this and override. Unknown fields are an error (`check_data_config`).
    """
    c = ml_collections.ConfigDict()
    # Where clips come from: "plain" (files in a folder), "tfds" (a set that `vrtspike prepare` or
    # a builder wrote), "scenes" (rendered on the fly, no files).
    c.source = "plain"
    # Folder of the data set. For "tfds" the folder that holds `dataset_info.json`.
    c.root = ""
    # How files are laid out, for "plain" only: "plain" (<split>/<sequence>/{blur,sharp,spike}),
    # "gopro" or "x4k" (as published; see `vrtspike_jax.data.layouts`).
    c.layout = "plain"
    # Names of the parts of the data set to train on and to score.
    c.train_split = "train"
    c.eval_split = "test"
    # Folder names inside a sequence, for the layouts "plain" and "gopro".
    c.blur_folder = "blur"
    c.sharp_folder = "sharp"
    c.spike_folder = "spike"
    # Whether symbolic links may lead out of `root`. Off, a link that does is an error.
    c.allow_links = False
    # How files are checked before training: "headers" (counts, names, sizes, complete files) or
    # "full" (also decodes every image once; minutes to hours).
    c.verify = "headers"
    # Largest image, in pixels, that is ever decoded (1 ..).
    c.max_image_pixels = 2**26

    # Frames a clip (T), 1 ... A clip longer than a sequence is an error.
    c.clip_length = 5
    # Distance between neighbouring frames of a clip, in frames of the sequence, 1 ...
    c.frame_stride = 1
    # Side of the square training crop in frame pixels; 0 keeps whole frames.
    c.crop_size = 256
    # Clips in one batch, over all hosts together, 1 ...
    c.batch_size = 1
    # Augmentation: mirroring, quarter turns (square crops only), and playing a clip backwards.
    c.flip = True
    c.rotate = True
    c.reverse_time = True

    # Spike pixels per frame pixel, (vertical, horizontal).
    c.spike_scale = (0.5, 0.5)
    # Spike pixels; 0 follows `spike_scale`. A number is checked against it and against the files.
    c.spike_height = 0
    c.spike_width = 0
    # Extra bits after each stored row of a .dat (16 for files with a head), 0 ...
    c.head_columns = 0
    # Spike steps of one exposure (S); 0 takes what one .dat a frame holds. Needed where a sequence
    # has one long .dat, cut into exposures that follow each other without a gap.
    c.steps = 0
    # CSV file, relative to `root`, with the exposure of each frame: frame_idx,t0,t1,event_count,seq
    # (t0, t1: time of the first and the last step, seconds). Empty: there is none.
    c.alignment_log = ""
    # Spike steps a second, for `alignment_log`.
    c.steps_per_second = 1000.0

    c.voxel = ml_collections.ConfigDict()
    # Time bins of an exposure (K), 1 ...
    c.voxel.bins = 32
    # Whether counts become log(1 + count), before `mean` and `std`.
    c.voxel.log = True
    # Normalisation (value - mean) / std; `vrtspike prepare` measures both. std > 0.
    c.voxel.mean = 0.0
    c.voxel.std = 1.0
    # Steps an exposure of the camera whose counts the model gets: spikes of a camera with other
    # steps are counted as it would have fired them (`vrtspike_jax.spikes.trained_counts`), which is
    # how `vrtspike deblur` brings any camera to a trained model. 0: the steps that the data have.
    c.voxel.steps = 0

    # Worker processes that read and decode; 0 uses threads of this process. 0 ...
    c.num_workers = 0
    # Threads that read, in each process, 1 ...
    c.read_threads = 2
    # Finished batches kept waiting, in each process, 1 ...
    c.prefetch_batches = 4
    # How many different clips may turn out unreadable while training before the run stops. Each is
    # replaced by another clip, and reported. 0 stops at the first.
    c.max_bad_clips = 16

    # Rendered clips, for the source "scenes".
    c.scenes = ml_collections.ConfigDict()
    # Different clips to train on, and held-out clips to score. 1 ... 2^30.
    c.scenes.train_clips = 2**20
    c.scenes.eval_clips = 8
    # Frame pixels that are rendered (before `crop_size`).
    c.scenes.height = 96
    c.scenes.width = 96
    # Whether training clips are cut and exposed on the accelerator, much faster than on the host:
    # films of `render`, and scenes drawn once as films, are kept there (`vrtspike_jax.data.reels`).
    # `train_clips` is how many clips there are before a second look.
    c.scenes.on_device = False
    # Scenes to draw as films, 0 ... Each takes the accelerator's memory of as many frames as a clip
    # of the longest film_exposure has, at crop_size times the largest film_shrink.
    c.scenes.reels = 256
    # What scenes look like: fields of `vrtspike_jax.scenes.SceneOptions`; empty takes its defaults.
    c.scenes.render = ml_collections.ConfigDict()
    return c


# Least and largest values of the numbers.
_RANGES = {
    "max_image_pixels": (1, 2**31),
    "clip_length": (1, 2**16),
    "frame_stride": (1, 2**16),
    "crop_size": (0, 2**16),
    "batch_size": (1, 2**20),
    "spike_height": (0, 2**14),
    "spike_width": (0, 2**14),
    "head_columns": (0, 2**14),
    "steps": (0, 2**20),
    "steps_per_second": (1e-6, 1e9),
    "voxel.bins": (1, 2**12),
    "voxel.steps": (0, 2**20),
    "voxel.std": (1e-12, 1e12),
    "voxel.mean": (-1e12, 1e12),
    "num_workers": (0, 2**10),
    "read_threads": (1, 2**10),
    "prefetch_batches": (1, 2**10),
    "max_bad_clips": (0, 2**20),
    "scenes.train_clips": (1, 2**30),
    "scenes.eval_clips": (1, 2**30),
    "scenes.reels": (0, 2**16),
    "scenes.height": (1, 2**14),
    "scenes.width": (1, 2**14),
}
_CHOICES = {"source": SOURCES, "layout": LAYOUTS, "verify": VERIFY}


def check_data_config(config: ml_collections.ConfigDict) -> None:
    """Checks names, kinds and ranges of every field of `config.data`.

    Raises:
      ValueError: an unknown or missing field, or a value out of range; the message names it.
    """
    default = default_data_config()
    _check_fields(config, default, "config.data")
    for name, (least, most) in _RANGES.items():
        value = _get(config, name)
        # `not <=` also refuses NaN.
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (not least <= value <= most)
        ):
            raise ValueError(f"config.data.{name}: found {value!r:.100}, wanted {least} to {most}")
        if isinstance(_get(default, name), int) and not isinstance(value, int):
            raise ValueError(f"config.data.{name}: found {value!r}, wanted a whole number")
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            raise ValueError(f"config.data.{name}: found {config[name]!r}, wanted one of {choices}")
    scale = config.spike_scale
    if (
        not isinstance(scale, list | tuple)
        or len(scale) != 2
        or any(isinstance(s, bool) or not isinstance(s, int | float) for s in scale)
        or not all(0 < s <= 16 for s in scale)
    ):
        raise ValueError(
            f"config.data.spike_scale: found {scale!r:.100}, wanted two numbers above 0"
        )
    if config.source != "scenes" and not config.root:
        raise ValueError(
            "config.data.root is empty: wanted the folder of the data set "
            "(or config.data.source='scenes', which needs no files)"
        )


def add_later_fields(
    config: ml_collections.ConfigDict, default: ml_collections.ConfigDict | None = None
) -> None:
    """Gives `config.data` of an earlier version the fields that came later, at their defaults."""
    for key, value in (default_data_config() if default is None else default).items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ml_collections.ConfigDict):
            add_later_fields(config[key], value)


def _check_fields(config: object, default: ml_collections.ConfigDict, name: str) -> None:
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"{name}: found {config!r:.100}, wanted a ConfigDict")
    unknown, missing = sorted(set(config) - set(default)), sorted(set(default) - set(config))
    if unknown:
        raise ValueError(
            f"{name}.{unknown[0]} is no known field{suggestion(unknown[0], set(default))}"
        )
    if missing:
        raise ValueError(f"{name}: fields {missing} are missing")
    for key, value in default.items():
        if key == "render":
            # Passed on, and checked where scenes are rendered.
            if not isinstance(config[key], ml_collections.ConfigDict):
                raise ValueError(f"{name}.{key}: found {config[key]!r:.100}, wanted a ConfigDict")
        elif isinstance(value, ml_collections.ConfigDict):
            _check_fields(config[key], value, f"{name}.{key}")
        elif isinstance(value, bool | str) and not isinstance(config[key], type(value)):
            raise ValueError(
                f"{name}.{key}: found {config[key]!r:.100}, wanted a {type(value).__name__}"
            )


def _get(config: ml_collections.ConfigDict, dotted: str) -> object:
    for part in dotted.split("."):
        config = config[part]
    return config
