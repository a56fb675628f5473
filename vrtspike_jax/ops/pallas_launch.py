"""Launches Triton kernels that are made for a plan, on a grid of one dimension."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array


def launch(
    operation: str,
    stages: int,
    kernel: Callable[..., None],
    plan: Any,
    programs: int,
    outputs: Any,
    *inputs: Array,
) -> Any:
    """Runs `kernel(*refs, plan=plan)` in so many programs.

    Args:
        operation: What profiles call the kernel, before its own name.
        stages: Depth of the pipeline that Triton makes of loops.
        kernel: Takes references to the inputs, then to the outputs.
        plan: Has `warps`, and whether to `interpret`.
        programs: How many.
        outputs: Shapes of the outputs.
        *inputs: Arrays.
    """
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        out_shape=outputs,
        grid=(programs,),
        interpret=plan.interpret,
        compiler_params=plgpu.CompilerParams(num_warps=plan.warps, num_stages=stages),
        name=operation + kernel.__name__,
    )(*inputs)


def large_multiprocessors() -> int:
    """Those of this machine's GPU if they have 227 KiB of shared memory each, for programs; else 0.

    For programs that stay, with all weights in shared memory, and walk over tiles.
    """
    device = jax.local_devices()[0]
    # Hopper, and Blackwell's servers.
    large = str(getattr(device, "compute_capability", "")) in ("9.0", "10.0", "10.3")
    return getattr(device, "core_count", 0) if large else 0
