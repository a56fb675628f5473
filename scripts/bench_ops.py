"""Checks the operations' implementations against float32 references and times them.

    python scripts/bench_ops.py                 # all cases
    python scripts/bench_ops.py attention       # cases whose name contains a word
    python scripts/bench_ops.py --json FILE

Prints a Markdown table: milliseconds forward, forward and backward, and relative errors
||out - reference|| / ||reference|| of the result and of the worst gradient.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vrtspike_jax import ops

IMPLEMENTATIONS = ("xla", "cudnn", "pallas")


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        name: As printed.
        make: Key to the arguments, a tuple of arrays or None.
        call: `call(implementation, *arguments)`.
        implementations: Those to time; the first, in float32, is the reference.
        differentiable: How many arguments, from the first, get a gradient.
    """

    name: str
    make: Callable[[Array], tuple]
    call: Callable[..., Array]
    implementations: tuple[str, ...]
    differentiable: int


def _normal(key: Array, *shapes: tuple[int, ...], scale: float = 1.0) -> list[Array]:
    keys = jax.random.split(key, len(shapes))
    return [
        (scale * jax.random.normal(k, s)).astype(jnp.bfloat16)
        for k, s in zip(keys, shapes, strict=True)
    ]


def attention_case(windows: int, tokens: int, heads: int, dim: int, bias: bool) -> Case:
    """Attention in windows stored one after another."""

    def make(key: Array) -> tuple:
        first, second = jax.random.split(key)
        arrays = _normal(first, *[(windows, tokens, heads, dim)] * 3)
        table = jax.random.normal(second, (heads, tokens, tokens)) if bias else None
        return *arrays, table

    def call(implementation: str, q: Array, k: Array, v: Array, table: Array | None) -> Array:
        q = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
        return ops.window_attention(q, k, v, table, implementation=implementation)

    name = f"window attention, {windows} x {tokens} tokens x {heads} x {dim}"
    name += ", bias" if bias else ""
    return Case(name, make, call, IMPLEMENTATIONS, 4 if bias else 3)


def shifted_case(frames: int, window: tuple[int, int, int], mutual: bool) -> Case:
    """Attention of a feature map, from the packed projection to before the output projection."""
    size, channels, heads = (frames, 256, 256), 96, 6
    shift = tuple(0 if s <= w else w // 2 for s, w in zip(size, window, strict=True))
    tokens = window[0] * window[1] * window[2]

    def make(key: Array) -> tuple:
        first, second = jax.random.split(key)
        maps = _normal(first, *[(1, *size, 3 * channels)] * 2, scale=0.5)
        return maps[0], jax.random.normal(second, (heads, tokens, tokens)), maps[1]

    def call(implementation: str, qkv: Array, bias: Array, other: Array) -> Array:
        return ops.shifted_window_attention(
            qkv,
            bias,
            window=window,
            shift=shift,
            mutual=other if mutual else None,
            implementation=implementation,
        )

    name = f"shifted window attention, {size}, window {window}" + (", mutual" if mutual else "")
    return Case(name, make, call, ("xla", "pallas"), 3 if mutual else 2)


def deform_case(noise: float, n: int = 8, size: int = 256, channels: int = 96) -> Case:
    """Flow-guided deformable convolution; offsets of groups and taps differ by about `noise`."""
    groups, magnitude = 16, 10.0

    def make(key: Array) -> tuple:
        keys = jax.random.split(key, 4)
        [x] = _normal(keys[0], (n, size, size, channels))
        [raw] = _normal(keys[1], (n, size, size, groups // 4, 9, 3, 4), scale=noise / magnitude)
        coarse = 8 * jax.random.normal(keys[2], (n, size // 32, size // 32, 1, 2))
        flow = jax.image.resize(coarse, (n, size, size, 1, 2), "linear")
        weight = 0.03 * jax.random.normal(keys[3], (3, 3, channels, channels))
        return x, raw, flow, weight

    def call(implementation: str, x: Array, raw: Array, flow: Array, weight: Array) -> Array:
        return ops.flow_guided_deform_conv(
            x, raw, flow, weight, None, magnitude, implementation=implementation
        )

    name = f"deformable convolution, {n} x {size} x {size} x {channels}, noise {noise} px"
    return Case(name, make, call, ("xla", "pallas"), 4)


def temporal_case(clips: int, frames: int, pixels: int, heads: int, dim: int) -> Case:
    """Attention over the frames of a clip at each pixel, with a bias."""

    def make(key: Array) -> tuple:
        first, second = jax.random.split(key)
        q, k, v = _normal(first, *[(clips, frames, pixels, heads, dim)] * 3)
        return q * dim**-0.5, k, v, jax.random.normal(second, (heads, frames, frames))

    def call(implementation: str, *arguments: Array) -> Array:
        return ops.temporal_attention(*arguments, implementation=implementation)

    name = f"attention over time, {clips} x {pixels} pixels x {frames} frames x {heads} x {dim}"
    return Case(name, make, call, ("products", "sums", "pallas"), 4)


def projection_case(rows: int, channels: int) -> Case:
    """LayerNorm and the projection to queries, keys and values."""

    def make(key: Array) -> tuple:
        keys = jax.random.split(key, 2)
        [x] = _normal(keys[0], (1, rows, channels))
        weight = 0.1 * jax.random.normal(keys[1], (channels, 3 * channels))
        return x, jnp.ones(channels), jnp.zeros(channels), weight

    def call(implementation: str, x: Array, gamma: Array, beta: Array, weight: Array) -> Array:
        carried = jnp.zeros(channels), None
        return ops.normed_projection(
            x, gamma, beta, weight, None, carried, implementation=implementation
        )[0]

    name = f"normalisation and projection, {rows} x {channels}"
    return Case(name, make, call, ("xla", "pallas"), 4)


def gate_case(rows: int, hidden: int) -> Case:
    """GEGLU's gate."""

    def make(key: Array) -> tuple:
        first, second = jax.random.split(key)
        [packed] = _normal(first, (1, rows, 2 * hidden))
        return packed, jax.random.normal(second, (2 * hidden,))

    def call(implementation: str, packed: Array, bias: Array) -> Array:
        return ops.gelu_gate(packed, bias, implementation)

    return Case(f"gate, {rows} x {hidden}", make, call, ("xla", "pallas"), 2)


CASES = [
    attention_case(1024, 320, 6, 16, bias=True),
    attention_case(3072, 128, 6, 16, bias=True),
    attention_case(6144, 64, 6, 16, bias=False),
    attention_case(5120, 64, 6, 16, bias=True),
    attention_case(1024, 320, 6, 20, bias=True),
    shifted_case(5, (5, 8, 8), mutual=False),
    shifted_case(6, (2, 8, 8), mutual=True),
    deform_case(1.0),
    deform_case(10.0),
    temporal_case(16, 5, 9216, 4, 8),
    temporal_case(1, 5, 65536, 4, 24),
    projection_case(5 * 256 * 256, 96),
    gate_case(5 * 256 * 256, 288),
]


def _both_ways(case: Case, implementation: str) -> tuple[Callable, Callable]:
    """Forward, and forward with backward."""
    forward = functools.partial(case.call, implementation)

    def full(dout: Array, *arguments: Any) -> tuple:
        some, rest = arguments[: case.differentiable], arguments[case.differentiable :]
        out, pull = jax.vjp(lambda *args: forward(*args, *rest), *some)
        return out, pull(dout.astype(out.dtype))

    return forward, full


def _milliseconds(call: Callable, *arguments: Any) -> float:
    """Median of five batches of calls."""
    jax.block_until_ready(call(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    count = max(3, min(50, int(0.03 / (time.perf_counter() - start))))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        out = [call(*arguments) for _ in range(count)][-1]
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / count * 1e3)
    return statistics.median(times)


def _error(value: Any, reference: Any) -> float:
    value, reference = (jnp.asarray(a, jnp.float32) for a in (value, reference))
    return float(jnp.linalg.norm((value - reference).ravel()) / jnp.linalg.norm(reference.ravel()))


def measure(case: Case, key: Array) -> list[dict]:
    """Times and errors of each implementation."""
    start = time.perf_counter()
    arguments = case.make(key)
    shape = jax.eval_shape(functools.partial(case.call, "xla"), *arguments)
    [dout] = _normal(jax.random.fold_in(key, 1), shape.shape)
    wide = [None if a is None else a.astype(jnp.float32) for a in arguments]

    def compiled(implementation: str, arguments: Any, precision: str | None = None) -> list:
        forward, full = _both_ways(case, implementation)
        programs = [(jax.jit(forward), arguments), (jax.jit(full), (dout, *arguments))]
        with jax.default_matmul_precision(precision):
            return [f.lower(*args).compile() for f, args in programs]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        reference = pool.submit(compiled, case.implementations[0], wide, "float32")
        waiting = {i: pool.submit(compiled, i, arguments) for i in case.implementations}
        programs = {i: job.result() for i, job in waiting.items()}
    out, gradients = reference.result()[1](dout, *wide)
    rows = []
    for implementation, (forward, full) in programs.items():
        result = full(dout, *arguments)
        errors = [_error(a, b) for a, b in zip(result[1], gradients, strict=True) if b is not None]
        rows.append(
            {
                "operation": case.name,
                "implementation": implementation,
                "forward_ms": _milliseconds(forward, *arguments),
                "forward_backward_ms": _milliseconds(full, dout, *arguments),
                "error": _error(result[0], out),
                "gradient_error": max(errors),
                "temporary_mib": full.memory_analysis().temp_size_in_bytes / 2**20,
            }
        )
    print(f"# {case.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def main() -> None:
    """Measures the chosen cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run the cases whose name contains one of these")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    rows = []
    for i, case in enumerate(CASES):
        if not options.words or any(word in case.name for word in options.words):
            rows += measure(case, jax.random.key(i))
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, bfloat16\n")
    print("| operation | implementation | forward ms | forward + backward ms | error | gradient |")
    print("| --- | --- | --- | --- | --- | --- |")
    for r in rows:
        print(
            f"| {r['operation']} | {r['implementation']} | {r['forward_ms']:.2f} | "
            f"{r['forward_backward_ms']:.2f} | {r['error']:.1e} | {r['gradient_error']:.1e} |"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
