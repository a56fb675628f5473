"""Time, memory and arithmetic of a config's train step or inference on this machine."""

import contextlib
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrtspike_jax import compiler, hardware, profiling
from vrtspike_jax.flops import count_flops


@dataclasses.dataclass(frozen=True)
class Workload:
    """A step to time.

    Attributes:
      mode: "infer" or "train".
      step: jitted (state, *rest) -> (state, outputs); training donates the state.
      args: (state, *rest). The state is the whole training state, or None.
      shape: batch, frames, height, width of a step, for the record.
      model_flops: operations the model needs for one step (training: three forward passes).
      dtype: the compute dtype, whose matrix rate utilisation is measured against.
    """

    mode: str
    step: Callable[..., tuple[Any, Any]]
    args: tuple[Any, ...]
    shape: dict[str, int]
    model_flops: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What `vrtspike bench` prints. Times in milliseconds, memory in bytes, rates per second.

    Steps are timed as training and restoring run them, each dispatched while the one before it is
    at work; `alone_ms` is what a step takes that starts on an idle device and is waited for.
    """

    mode: str
    config: str
    shape: dict[str, int]
    dtype: str
    device: dict[str, Any]
    versions: dict[str, str]
    trace_seconds: float
    compile_seconds: float
    first_step_seconds: float
    steps: int
    median_ms: float
    min_ms: float
    alone_ms: float
    p10_ms: float
    p90_ms: float
    clips_per_second: float
    peak_bytes: int | None
    compiled_bytes: dict[str, int]
    model_flops: int
    compiler_flops: float | None
    flops_per_second: float
    matrix_rate: float
    utilisation: float
    breakdown: dict[str, Any] | None = None


def build_workload(
    config,
    mode: str,
    batch: int | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Workload:
    """The workload of a mode, "infer" or "train"; sizes not given are the config's."""
    build = {"infer": infer_workload, "train": train_workload}[mode]
    data = config.data
    return build(
        config,
        batch or data.batch_size,
        frames or data.clip_length,
        height or data.crop_size,
        width or data.crop_size,
    )


def infer_workload(config, batch: int, frames: int, height: int, width: int) -> Workload:
    """Restoring `batch` clips of `frames` frames with random parameters of the config's model."""
    from vrtspike_jax.models.build import build_model
    from vrtspike_jax.restoration.inference import for_inference, make_restore_step, store_params

    model = for_inference(build_model(config.model))
    arrays = _clip_arrays(config, batch, frames, height, width)
    params = store_params(model, random_params(model, arrays))
    voxel = config.data.voxel
    restore = make_restore_step(model, voxel.log, voxel.mean, voxel.std)

    @functools.partial(jax.jit, compiler_options=compiler.options())
    def step(nothing, params, blur, spikes):
        return nothing, restore(params, blur, spikes)

    inputs = {name: jnp.asarray(arrays[name]) for name in ("blur", "spikes")}
    flops = count_flops(restore, params, *inputs.values())
    shape = {"batch": batch, "frames": frames, "height": height, "width": width}
    args = (None, params, *inputs.values())
    return Workload("infer", step, args, shape, flops, str(config.model.dtype))


def train_workload(config, batch: int, frames: int, height: int, width: int) -> Workload:
    """One optimiser step (forward, backward, update) on `batch` clips of random data.

    VGG's weights are random too, where the config has a perceptual loss.
    """
    from vrtspike_jax.models.build import build_model
    from vrtspike_jax.training import optimizer, sharding
    from vrtspike_jax.training.state import create_state
    from vrtspike_jax.training.step import Recipe, apply_model, build_train_step

    model = build_model(config.model)
    arrays = _clip_arrays(config, batch, frames, height, width)
    params = random_params(model, arrays)
    flops = 3 * count_flops(
        lambda p, x, v: apply_model(model, p, x, v),
        params,
        jax.ShapeDtypeStruct(arrays["blur"].shape, jnp.float32),
        jax.ShapeDtypeStruct(arrays["spikes"].shape, jnp.float32),
    )
    mesh = sharding.make_mesh(config.mesh, batch)
    tx = optimizer.gradient_transformation(config.optim)
    state = create_state(params, tx, config.optim)
    state = jax.device_put(state, sharding.state_shardings(state, mesh))
    recipe = Recipe.from_config(config)
    step = build_train_step(model, tx, recipe, mesh, state)
    micro_batches = {name: array[None] for name, array in arrays.items()}
    placed = sharding.put_batch(micro_batches, mesh, leading=1)
    fixed = {"vgg": random_vgg16(recipe.vgg_layers)} if recipe.vgg_weight else {}
    fixed = jax.device_put(fixed, sharding.replicated(mesh))
    shape = {"batch": batch, "frames": frames, "height": height, "width": width}
    return Workload("train", step, (state, placed, fixed), shape, flops, str(config.model.dtype))


def _clip_arrays(config, batch: int, frames: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Random clips in the storage format of a training batch (uint8)."""
    from vrtspike_jax.data.batch import spike_crop_size

    rng = np.random.default_rng(0)
    spike_size = spike_crop_size(config.data, height, width)
    frame_shape = (batch, frames, height, width, 3)
    spike_shape = (batch, frames, *spike_size, config.data.voxel.bins)
    return {
        "blur": rng.integers(0, 256, frame_shape, np.uint8),
        "sharp": rng.integers(0, 256, frame_shape, np.uint8),
        "spikes": rng.integers(0, 3, spike_shape, np.uint8),
        "index": np.arange(batch, dtype=np.int32),
    }


def random_vgg16(layers) -> dict[str, dict[str, np.ndarray]]:
    """VGG16 parameters of the right shapes, as far as `layers` need them."""
    from vrtspike_jax.losses.vgg import _CONVOLUTIONS, LAYERS

    rng = np.random.default_rng(0)
    last = max(LAYERS[name] for name in layers)
    params = {}
    for index, (inputs, outputs) in _CONVOLUTIONS.items():
        if index <= last:
            kernel = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (3, 3, inputs, outputs))
            bias = np.zeros(outputs, np.float32)
            params[f"features.{index}"] = {"kernel": kernel.astype(np.float32), "bias": bias}
    return params


def random_params(model, arrays: dict[str, np.ndarray], seed: int = 0) -> Any:
    """Parameters of the right shapes without compiling the model's initialiser.

    Biases are zero, scales one, kernels normal with the variance of their fan-in, so that
    activations and sampling offsets stay as small as in a freshly initialised model.
    """
    names = ("blur", "spikes") if hasattr(model, "spike_bins") else ("blur",)
    inputs = [jax.ShapeDtypeStruct(arrays[name].shape, jnp.float32) for name in names]
    shapes = jax.eval_shape(model.init, jax.random.key(seed), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = str(path[-1].key)
        if name == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        if name == "bias" or len(leaf.shape) < 2:
            return jnp.zeros(leaf.shape, leaf.dtype)
        deviation = 0.5 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(0, deviation, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(
    workload: Workload,
    config_name: str = "",
    seconds: float = 10.0,
    max_steps: int = 50,
    breakdown: bool = False,
) -> Result:
    """Compiles a workload, times its steps one by one, and profiles a few more if asked.

    Args:
      workload: from `build_workload`.
      config_name: for the record.
      seconds: time to spend on timed steps; at least 3 steps, at most `max_steps`.
      max_steps: see `seconds`.
      breakdown: also profile by named scope.
    """
    start = time.perf_counter()
    lowered = workload.step.lower(*workload.args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    compiled_at = time.perf_counter()
    # A donated state is gone after the first step; every later one takes its predecessor's.
    state, *rest = workload.args
    state, _ = jax.block_until_ready(compiled(state, *rest))
    first = time.perf_counter()
    state, alone = _time_steps(compiled, state, rest, seconds / 10, 5, ahead=0)
    state, times = _time_steps(compiled, state, rest, seconds, max_steps, ahead=1)
    peak = hardware.peak_memory()
    report = _break_down(lowered, compiled, state, rest) if breakdown else None
    rate = hardware.matrix_rate(jnp.dtype(workload.dtype))
    median = statistics.median(times)
    return Result(
        mode=workload.mode,
        config=config_name,
        shape=workload.shape,
        dtype=workload.dtype,
        device=dataclasses.asdict(hardware.describe_devices()),
        versions=hardware.versions(),
        trace_seconds=traced - start,
        compile_seconds=compiled_at - traced,
        first_step_seconds=first - compiled_at,
        steps=len(times),
        median_ms=1e3 * median,
        min_ms=1e3 * min(times),
        alone_ms=1e3 * statistics.median(alone),
        p10_ms=1e3 * float(np.percentile(times, 10)),
        p90_ms=1e3 * float(np.percentile(times, 90)),
        clips_per_second=workload.shape["batch"] / median,
        peak_bytes=peak,
        compiled_bytes=compiled_memory(compiled),
        model_flops=workload.model_flops,
        compiler_flops=(compiled.cost_analysis() or {}).get("flops"),
        flops_per_second=workload.model_flops / median,
        matrix_rate=rate,
        utilisation=workload.model_flops / median / rate,
        breakdown=report,
    )


def _time_steps(
    compiled, state, rest, seconds: float, max_steps: int, ahead: int
) -> tuple[Any, list[float]]:
    """The state after some steps, and the seconds from the end of each to the end of the next.

    `ahead` steps are dispatched before the one that is waited for.
    """
    times: list[float] = []
    running: list[Any] = []
    while len(times) < 3 + ahead or (sum(times) < seconds and len(times) < max_steps + ahead):
        if not running:
            last = time.perf_counter()
        while len(running) <= ahead:
            state, outputs = compiled(state, *rest)
            running.append(outputs)
        jax.block_until_ready(running.pop(0))
        times.append(time.perf_counter() - last)
        last += times[-1]
    jax.block_until_ready(state)
    return state, times[ahead:]


def _break_down(lowered, compiled, state, rest, steps: int = 3) -> dict[str, Any]:
    if jax.default_backend() == "gpu":
        # Library kernels that XLA launches as part of a CUDA graph lose their names.
        with contextlib.suppress(RuntimeError, ValueError):  # not every XLA can
            options = {"xla_gpu_enable_command_buffer": ""} | (compiler.options() or {})
            compiled = lowered.compile(compiler_options=options)
    holder = [jax.block_until_ready(compiled(state, *rest))[0]]

    def step():
        holder[0], outputs = compiled(holder[0], *rest)
        jax.block_until_ready((holder[0], outputs))

    measured = profiling.measure_instructions(step, steps)
    instructions = profiling.read_instructions(compiled.as_text())
    return dataclasses.asdict(profiling.break_down(instructions, measured, steps))


def compiled_memory(compiled) -> dict[str, int]:
    """The compiler's own account of one call: bytes of arguments, outputs, temporaries, total."""
    stats = compiled.memory_analysis()
    found = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    found["total"] = sum(found.values()) - 2 * found["aliased"]
    return found


def load(path: Path) -> dict[str, Any]:
    """Reads a result that `vrtspike bench --json` wrote.

    Raises:
      ValueError: if the file is missing or is no such result.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot read a benchmark result: {error}") from error
    missing = {"mode", "median_ms", "clips_per_second", "shape"} - set(found)
    if missing:
        raise ValueError(f"{path}: no benchmark result, it lacks {sorted(missing)}")
    return found
