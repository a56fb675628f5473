"""What fits: the compiler's memory for a config's train step, and settings for this device."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vrtspike_jax import hardware
from vrtspike_jax.benchmark import compiled_memory

# Share of the device's memory that a train step may take; the rest is for fragmentation, the
# batches that are waiting, and validation.
HEADROOM = 0.9


@dataclasses.dataclass(frozen=True)
class Trial:
    """The compiler's memory of one train step. `total_bytes` is on one device, all in all."""

    batch_size: int
    crop_size: int
    remat: str
    total_bytes: int
    temporary_bytes: int


@dataclasses.dataclass(frozen=True)
class Advice:
    """Settings that fit. `expected_bytes` is measured, not extrapolated."""

    batch_size: int
    crop_size: int
    remat: str
    accumulation_steps: int
    expected_bytes: int


def rates() -> dict[str, float]:
    """Measured rates of the default device: operations or bytes a second."""
    return {
        "matrix_bfloat16_flops": hardware.matrix_rate(jnp.bfloat16),
        "matrix_float32_flops": hardware.matrix_rate(jnp.float32),
        "copy_bytes": hardware.copy_bandwidth(),
        "input_bytes": hardware.input_rate(),
    }


def measure_step(config, batch_size: int, crop_size: int, remat: str) -> Trial:
    """Compiles a train step without allocating anything, and reads the compiler's account.

    Args:
      config: a whole config; left unchanged.
      batch_size: clips of all devices together.
      crop_size: side in pixels.
      remat: as in `config.model.remat`.
    """
    from vrtspike_jax.data.batch import spike_crop_size
    from vrtspike_jax.models.build import build_model
    from vrtspike_jax.training import sharding
    from vrtspike_jax.training.initialise import abstract_state
    from vrtspike_jax.training.optimizer import gradient_transformation
    from vrtspike_jax.training.step import Recipe, build_train_step

    config = _changed(config, batch_size, crop_size, remat)
    model = build_model(config.model)
    mesh = sharding.make_mesh(config.mesh, batch_size)
    state = abstract_state(model, config, mesh)
    recipe = Recipe.from_config(config)
    step = build_train_step(model, gradient_transformation(config.optim), recipe, mesh, state)
    data = config.data
    frames = (1, batch_size, data.clip_length, crop_size, crop_size, 3)
    spikes = (*frames[:3], *spike_crop_size(data, crop_size, crop_size), data.voxel.bins)
    shapes = {"blur": (frames, jnp.uint8), "sharp": (frames, jnp.uint8)}
    shapes |= {"spikes": (spikes, jnp.uint8), "index": (frames[:2], jnp.int32)}
    batch = {}
    for name, (shape, dtype) in shapes.items():
        plain = jax.ShapeDtypeStruct(shape, dtype)
        placed = sharding.batch_sharding(mesh, plain, leading=1)
        batch[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
    compiled = step.lower(state, batch, _abstract_vgg16(recipe, mesh)).compile()
    memory = compiled_memory(compiled)
    return Trial(batch_size, crop_size, remat, memory["total"], memory["temporaries"])


def _abstract_vgg16(recipe, mesh) -> dict[str, Any]:
    from vrtspike_jax.benchmark import random_vgg16
    from vrtspike_jax.training.sharding import replicated

    if not recipe.vgg_weight:
        return {}
    return {
        "vgg": jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
            random_vgg16(recipe.vgg_layers),
        )
    }


def _changed(config, batch_size: int, crop_size: int, remat: str):
    config = config.copy_and_resolve_references()
    config.unlock()
    config.data.batch_size, config.data.crop_size = batch_size, crop_size
    config.model.remat = remat
    return config


def advise(
    config,
    trials: Iterable[Trial],
    limit: float,
    measure: Callable[[int, int, str], Trial],
) -> Advice | None:
    """Settings that fit: the config's crop, no recomputation if possible, then the largest batch.

    Memory grows in proportion to clips and pixels, which a line through the trials says; the choice
    is then compiled, unless it has been, and made smaller until it fits.

    Args:
      config: a whole config.
      trials: what has been measured.
      limit: bytes that a train step may take on each device.
      measure: (batch size, crop size, remat) -> trial.

    Returns:
      None if nothing fits, at half the crop and with full recomputation.
    """
    known = {(t.batch_size, t.crop_size, t.remat): t for t in trials}
    clips = config.data.batch_size * config.optim.accumulation_steps
    devices = jax.device_count()
    remats = dict.fromkeys(["none", config.model.remat, "block"])
    crops = dict.fromkeys([config.data.crop_size, max(64, config.data.crop_size // 16 * 8)])
    for crop in crops:
        for remat in remats:
            batch = _largest_batch(known, crop, remat, limit, clips, devices)
            while batch >= devices:
                key = (batch, crop, remat)
                if key not in known:
                    known[key] = measure(*key)
                if known[key].total_bytes <= limit:
                    steps = max(1, round(clips / batch))
                    return Advice(batch, crop, remat, steps, known[key].total_bytes)
                # The trial that failed has made the line steeper.
                again = _largest_batch(known, crop, remat, limit, clips, devices)
                batch = min(batch - devices, again)
    return None


def _largest_batch(
    known: dict[tuple[int, int, str], Trial],
    crop: int,
    remat: str,
    limit: float,
    clips: int,
    devices: int,
) -> int:
    """The largest batch that a line through the trials lets fit; whole clips for each device."""
    points = [
        (t.batch_size * t.crop_size**2, t.total_bytes) for t in known.values() if t.remat == remat
    ]
    if not points:
        return devices
    most = max(devices, clips // devices * devices)
    largest = max(points)
    smallest = min(points)
    if largest[0] == smallest[0]:
        rate, start = largest[1] / largest[0], 0.0
    else:
        rate = (largest[1] - smallest[1]) / (largest[0] - smallest[0])
        start = smallest[1] - rate * smallest[0]
    if rate <= 0:
        return most
    fits = math.floor((limit - start) / (rate * crop**2))
    return min(most, max(devices, fits // devices * devices))


_TEMPLATE = '''"""{name} fitted to {device}, by `vrtspike doctor`.

The compiler counts {gib:.1f} GiB for a train step; {limit:.1f} GiB may be used.
"""

import importlib.util
import sys
from pathlib import Path

BASE = Path(__file__).resolve().parent / {relative!r}


def get_config(arg: str = {argument!r}):
    sys.path.append(str(BASE.parent.parent))  # the base may import its neighbours
    spec = importlib.util.spec_from_file_location("_base_config", BASE)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config(arg)
{overrides}    config.model.remat = {remat!r}
    config.data.batch_size = {batch}  # clips of all devices together
    config.data.crop_size = {crop}
    config.optim.accumulation_steps = {steps}
    return config
'''


def write_override(
    path: Path,
    base: Path,
    advice: Advice,
    limit: float,
    argument: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Writes a config file that takes `base` and changes what the advice says.

    Args:
      path: the file to write.
      base: the config file that was tried.
      advice: what to change.
      limit: bytes that a train step may take, for the heading.
      argument: what `base.get_config` got, the default of the new one.
      overrides: other fields that were changed for the trials, `a.b.c` -> value.
    """
    from vrtspike_jax.restoration.sinks import write_atomically

    device = hardware.describe_devices()
    relative = os.path.relpath(base.resolve(), path.absolute().parent)
    text = _TEMPLATE.format(
        name=base.name,
        device=f"{device.count} x {device.kind}",
        gib=advice.expected_bytes / 2**30,
        limit=limit / 2**30,
        relative=relative,
        remat=advice.remat,
        batch=advice.batch_size,
        crop=advice.crop_size,
        steps=advice.accumulation_steps,
        argument=argument,
        overrides="".join(f"    config.{k} = {v!r}\n" for k, v in (overrides or {}).items()),
    )
    write_atomically(path, text.encode())
