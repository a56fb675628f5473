"""Launches Triton kernels that are made for a plan, on a grid of one dimension."""

import functools
from collections.abc import Callable
from typing import Any

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
