"""Choosing between the implementations of an operation."""

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "pallas", "interpret")


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning the first time it is called with it."""
    logging.getLogger(__name__).warning(message)


@functools.cache
def kernels(name: str) -> ModuleType | None:
    """Imports a module of kernels; None, with one warning, if this JAX lacks what it uses."""
    try:
        return importlib.import_module(f"vrtspike_jax.ops.{name}")
    except (ImportError, AttributeError) as error:
        warn_once(f"{name}: Triton kernels are missing from JAX {jax.__version__} ({error})")
        return None


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
    platform too.
    """
    if interpret:
        return cuda(*args)
    return jax.lax.platform_dependent(*args, cuda=cuda, default=otherwise)
