"""Checking every file of a data set before anything is trained on it.

Sizes come from image headers and from the length of `.dat` files, so the check is quick (a thousand
frames a second on a local disk); the mode "full" also decodes each image.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable

import ml_collections

from vrtspike_jax.data import images
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.geometry import Geometry, Size, check_crop, spike_size
from vrtspike_jax.data.sequences import FileList, Sequence, SequenceFiles
from vrtspike_jax.spikes.dat import DatFile

_THREADS = 8


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """The fields of `config.data` that say what files must be; see `vrtspike_jax.data.config`."""

    verify: str = "headers"
    max_image_pixels: int = 2**26
    clip_length: int = 1
    frame_stride: int = 1
    crop_size: int = 0
    spike_scale: tuple[float, float] = (0.5, 0.5)
    spike_height: int = 0
    spike_width: int = 0
    head_columns: int = 0
    steps: int = 0

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "VerifyOptions":
        """Picks the fields out of `config.data`."""
        values = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        return cls(**values | {"spike_scale": tuple(config.spike_scale)})

    @property
    def clip_span(self) -> int:
        """Frames from the first to the last one of a clip."""
        return (self.clip_length - 1) * self.frame_stride + 1


def verify_sequences(
    found: Iterable[SequenceFiles],
    options: VerifyOptions,
    on_error: Callable[[str, DataError], None] | None = None,
) -> list[Sequence]:
    """Opens every file of every sequence.

    Args:
      found: from `find_sequences`.
      options: what the files must be.
      on_error: takes (name, error) of sequences that fail, which are then left out. None raises.

    Raises:
      DataError (a ValueError): the first fault, with the file, what was found and what was wanted.
    """
    verified = []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for files in found:
            try:
                verified.append(_verify(files, options, pool))
            except ValueError as error:
                # `.dat` files raise DatError, `config.yaml` CameraConfigError.
                error = error if isinstance(error, DataError) else DataError(str(error))
                if on_error is None:
                    raise error from None
                on_error(files.name, error)
    return verified


def check_same_steps(sequences: list[Sequence]) -> int:
    """The steps of an exposure, which must be the same throughout.

    Raises:
      DataError: two exposures differ.
    """
    first, steps = sequences[0], _steps(sequences[0])
    for other in sequences[1:]:
        if _steps(other) != steps:
            raise DataError(
                f"{other.spike_path(0)}: found exposures of {_steps(other)} steps, wanted {steps} "
                f"as in {first.spike_path(0)}"
            )
    return steps


def _steps(sequence: Sequence) -> int:
    begin, end = sequence.exposures[0]
    return end - begin


def _verify(
    files: SequenceFiles, options: VerifyOptions, pool: concurrent.futures.Executor
) -> Sequence:
    if len(files) < options.clip_span:
        raise DataError(
            f"{files.blur.folder}: found {len(files)} frames, wanted at least {options.clip_span} "
            f"for a clip (clip_length={options.clip_length}, frame_stride={options.frame_stride})"
        )
    frame = _check_images(files, options, pool)
    geometry = Geometry(frame, _spike_size(files, frame, options))
    check_crop(geometry, options.crop_size, files.blur.folder)
    head_columns = options.head_columns or (files.camera.head_columns if files.camera else 0)
    exposures = _check_spikes(files, geometry.spike, head_columns, options.steps)
    return Sequence(files, geometry, head_columns, exposures)


def _check_images(
    files: SequenceFiles, options: VerifyOptions, pool: concurrent.futures.Executor
) -> Size:
    """Checks all images of a sequence; returns their common size."""
    limit = options.max_image_pixels
    size = images.header_size(files.blur.path(0), files.blur.path(0), limit)
    reference = files.blur.path(0)

    def check(path: str) -> None:
        found = images.header_size(path, path, limit)
        if found != size:
            raise DataError(
                f"{path}: found {found[0]} x {found[1]} pixels, wanted {size[0]} x {size[1]} as "
                f"{reference}"
            )
        if options.verify == "full" or not images.looks_complete(path):
            images.decode(images.read_bytes(path), size, path)

    for group in (files.blur, files.sharp):
        # `map` hands on the first exception, in the order of the files.
        list(pool.map(check, (group.path(i) for i in range(len(group)))))
    return size


def _spike_size(files: SequenceFiles, frame: Size, options: VerifyOptions) -> Size:
    scaled = spike_size(*frame, options.spike_scale)
    stated = (options.spike_height or scaled[0], options.spike_width or scaled[1])
    source = "config.data.spike_height and spike_width"
    if not (options.spike_height or options.spike_width):
        stated = (files.camera.height, files.camera.width) if files.camera else scaled
        source = "config.yaml beside it"
    if stated != scaled:
        raise DataError(
            f"{files.spikes.folder}: found spikes of {stated[0]} x {stated[1]} ({source}) for "
            f"frames of {frame[0]} x {frame[1]}, wanted {scaled[0]} x {scaled[1]} by "
            f"config.data.spike_scale={options.spike_scale}; set spike_scale="
            f"({stated[0] / frame[0]:.6g}, {stated[1] / frame[1]:.6g}) if both show the same field"
        )
    return stated


def _check_spikes(
    files: SequenceFiles, size: Size, head_columns: int, steps: int
) -> tuple[tuple[int, int], ...]:
    """Checks the `.dat` files against the exposures, and returns these."""
    if files.exposures is None:
        lengths = [_dat(files.spikes, i, size, head_columns) for i in range(len(files.spikes))]
        wanted = steps or lengths[0]
        for i, length in enumerate(lengths):
            if length != wanted:
                reason = "config.data.steps" if steps else files.spikes.names[0]
                raise DataError(
                    f"{files.spikes.path(i)}: found {length} steps, wanted {wanted} as {reason}"
                )
        return tuple((0, wanted) for _ in lengths)
    path, length = files.spikes.path(0), _dat(files.spikes, 0, size, head_columns)
    first, last = files.exposures[0]
    for i, (begin, end) in enumerate(files.exposures):
        if begin < 0 or end > length:
            raise DataError(
                f"{path}: found {length} steps; frame {files.frame_name(i)} was exposed during "
                f"steps {begin} to {end - 1}, wanted these inside the recording"
            )
        if end - begin != last - first:
            raise DataError(
                f"{path}: found an exposure of {end - begin} steps for frame "
                f"{files.frame_name(i)}, wanted {last - first} as for {files.frame_name(0)}"
            )
    if files.gapless and length != files.exposures[-1][1]:
        raise DataError(
            f"{path}: found {length} steps, wanted {files.exposures[-1][1]} "
            f"({len(files)} frames of config.data.steps={steps})"
        )
    return files.exposures


def _dat(files: FileList, i: int, size: Size, head_columns: int) -> int:
    return DatFile(files.path(i), *size, head_columns).num_frames
