"""Choosing between the implementations of an operation."""

import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "pallas", "interpret")


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning the first time it is called with it."""
    logging.getLogger(__name__).warning(message)


@functools.cache
def kernels(name: str) -> ModuleType | None:
    """Imports a module of kernels; None, with one warning, if this JAX lacks what it uses."""
    _remember_missing_dialect()
    try:
        return importlib.import_module(f"vrtspike_jax.ops.{name}")
    except (ImportError, AttributeError) as error:
        warn_once(f"{name}: Triton kernels are missing from JAX {jax.__version__} ({error})")
        return None


@functools.cache
def _remember_missing_dialect() -> None:
    """Spares the lowering of kernels a quarter of its time.

    For each type of Triton's that MLIR's bindings meet they look for a Python module of that
    dialect. JAX has none of this name, and that it is not there is found out anew every time.
    """
    name = "jaxlib.mlir.dialects.tt"
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = ModuleType(name)


def uses_kernels(implementation: str, rows_split: bool = False) -> bool:
    """Whether an operation is to be built around its kernels.

    "auto" asks for them on GPU hosts alone: elsewhere they would only be traced, and the backward
    pass would recompute what the reference keeps. Nor does it where devices share the rows of an
    image: kernels would need all rows on each of them, XLA's operations exchange a few.

    Args:
        implementation: One of `IMPLEMENTATIONS`.
        rows_split: From `partition.splits_rows`.
    """
    if implementation == "auto":
        found = jax.default_backend() == "gpu"
        if found and rows_split:
            warn_once("devices share the rows of an image: running 'xla', as kernels need all rows")
        return found and not rows_split
    found = implementation in ("pallas", "interpret")
    if found and rows_split:
        warn_once(
            f"{implementation!r} where devices share the rows of an image: each kernel gathers the "
            "rows, and all devices compute all of them; 'auto' and 'xla' do not"
        )
    return found


def check(operation: str, implementation: str, allowed: tuple[str, ...] = IMPLEMENTATIONS) -> None:
    """Raises ValueError for an unknown implementation; warns where this platform lacks it."""
    if implementation not in allowed:
        raise ValueError(f"{operation}: implementation {implementation!r}, want one of {allowed}")
    if implementation in ("cudnn", "pallas") and jax.default_backend() != "gpu":
        warn_once(f"{operation}: {implementation!r} needs a CUDA GPU; others run 'xla'")


def without_cudnn(implementation: str) -> str:
    """What operations that cuDNN lacks take in a model that asks for it: "auto"."""
    return "auto" if implementation == "cudnn" else implementation


def on_cuda(
    cuda: Callable[..., Any], otherwise: Callable[..., Any], *args: Any, interpret: bool = False
) -> Any:
    """Calls `cuda` where the computation is compiled for CUDA or interpreted, else `otherwise`.

    The choice falls when the computation is lowered, so that it holds for exports to another
    platform too. Unlike `jax.lax.platform_dependent` it cannot be differentiated, and `otherwise`
    is not traced before it is needed: that was a fifth of the time to trace a train step.
    """
    if interpret:
        return cuda(*args)
    jaxpr, shapes = jax.make_jaxpr(cuda, return_shape=True)(*args)
    leaves, inputs = jax.tree.flatten(args)
    outputs = jax.tree.structure(shapes)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(otherwise(*jax.tree.unflatten(inputs, leaves)))

    return jax.tree.unflatten(outputs, on_cuda_p.bind(*leaves, cuda=jaxpr, otherwise=flat))


on_cuda_p = Primitive("on_cuda")
on_cuda_p.multiple_results = True


@on_cuda_p.def_impl
def _run(*leaves: Any, **branches: Any) -> list[Any]:
    return jax.jit(functools.partial(on_cuda_p.bind, **branches))(*leaves)


@on_cuda_p.def_abstract_eval
def _shapes(*_: Any, cuda: ClosedJaxpr, otherwise: Callable[..., Any]) -> list[Any]:
    return list(cuda.out_avals)


def _lower_cuda(*leaves: Any, cuda: ClosedJaxpr, otherwise: Callable[..., Any]) -> list[Any]:
    return jaxpr_as_fun(cuda)(*leaves)


def _lower_otherwise(*leaves: Any, cuda: ClosedJaxpr, otherwise: Callable[..., Any]) -> list[Any]:
    return otherwise(*leaves)


def _batch(
    leaves: Any, axes: Any, *, cuda: ClosedJaxpr, otherwise: Callable[..., Any]
) -> tuple[list[Any], list[int]]:
    branches = (jax.vmap(f, axes, 0) for f in (jaxpr_as_fun(cuda), otherwise))
    results = on_cuda(*branches, *leaves)
    return results, [0] * len(results)


batching.primitive_batchers[on_cuda_p] = _batch
mlir.register_lowering(on_cuda_p, mlir.lower_fun(_lower_otherwise, multiple_results=True))
mlir.register_lowering(
    on_cuda_p, mlir.lower_fun(_lower_cuda, multiple_results=True), platform="cuda"
)
