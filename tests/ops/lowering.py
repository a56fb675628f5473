"""Lowers operations for platforms that this machine need not have."""

import contextlib

import jax
from jax import export

_TRITON = "__gpu$xla.gpu.triton"


def lowered(function, platform, *arguments):
    """The module of a function lowered for "cuda" or "tpu", as text, and its Triton kernels."""
    # Kernels in an export may not outlive a version of JAX; this one is not kept.
    checks = [export.DisabledSafetyCheck.custom_call(_TRITON)]
    with _as_if_on_a_gpu() if platform == "cuda" else contextlib.nullcontext():
        exported = export.export(jax.jit(function), platforms=[platform], disabled_checks=checks)(
            *arguments
        )
    module = exported.mlir_module()
    return module, module.count(f"custom_call @{_TRITON}")


def _as_if_on_a_gpu():
    """From JAX 0.12 on, kernels are lowered for a GPU that JAX knows, present or not."""
    if jax.__version_info__ < (0, 12):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
