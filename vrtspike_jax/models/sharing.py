"""What is traced once for all modules that are alike."""

import functools
from typing import Any

import jax
from flax import linen as nn


# By the compiler calls are inlined; but Flax traces, and JAX derives, transposes and lowers, what
# several stages or blocks do as often as they do it.
@functools.partial(jax.jit, static_argnums=0)
def apply_shared(module: nn.Module, params: Any, *args: Any) -> Any:
    """Applies a module without a parent to parameters.

    Calls of modules with the same fields and arguments of the same shapes share one function.
    """
    return module.apply({"params": params}, *args)
