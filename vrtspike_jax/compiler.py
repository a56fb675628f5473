"""Options of the compiler that the model is compiled with."""

import jax


def options() -> dict[str, bool | str] | None:
    """Compiler options for this machine's default backend, or None."""
    if jax.default_backend() != "gpu":
        return None
    # cuBLAS adds the bias in its products' last step; products that the compiler writes itself as
    # Triton kernels do not, are no faster at these shapes, and take minutes to tune.
    return {"xla_gpu_enable_triton_gemm": False}
