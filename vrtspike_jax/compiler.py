"""The compiler: the options that the model is compiled with, and where programs are kept."""

import functools
import os
from pathlib import Path

import jax

TUNED = Path(__file__).with_name("tuned.pbtxt")
# Of JAX: its compiler reads and writes these results; earlier ones print an error at their sight.
TUNED_SINCE = (0, 11, 2)

_GPU = {
    # cuBLAS adds the bias in its products' last step; products that the compiler writes itself as
    # Triton kernels do not, are no faster at these shapes, and take minutes to tune.
    "xla_gpu_enable_triton_gemm": False,
    # Compiles each elementwise kernel several times over to see which is fastest: minutes too.
    "xla_gpu_experimental_enable_fusion_autotuner": False,
    # Algorithms of cuBLAS and cuDNN are timed, and not compared with each other as well, which was
    # a quarter of the time to compile a train step.
    "xla_gpu_autotune_level": 1,
    # A product that reads weights where they lie in the optimiser's vector, or writes into a slice
    # of one, is not tuned, and fails where the slice does not begin at a multiple of 16 bytes.
    "xla_gpu_enable_dynamic_slice_fusion": False,
    # What `scripts/tune.py` found fastest, so that it need not be found again: half of the time to
    # compile a train step. The compiler looks results up by operation, GPU and versions, and tunes
    # what it does not find there.
    "xla_gpu_load_autotune_results_from": str(TUNED),
}


@functools.cache
def _knows(name: str, value: bool | int | str) -> bool:
    """Whether this version of the compiler has an option, and can read the file that it names."""
    try:
        jax.jit(lambda x: x + 1).lower(0.0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def options(tuned: bool = True) -> dict[str, bool | int | str] | None:
    """Compiler options for this machine's default backend, or None.

    Args:
        tuned: whether to take the shipped results of tuning, where there are any. Once read, they
            stay with the process.
    """
    if jax.default_backend() != "gpu":
        return None
    tuned = tuned and jax.__version_info__ >= TUNED_SINCE
    wanted = {name: value for name, value in _GPU.items() if tuned or value != str(TUNED)}
    return {name: value for name, value in wanted.items() if _knows(name, value)}


def keep_compiled_programs() -> None:
    """Keeps what XLA compiles between runs, unless JAX_COMPILATION_CACHE_DIR says where.

    In a folder of the user's own: whoever can write there could run code.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "vrtspike-jax" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # a home that cannot be written only costs time
    jax.config.update("jax_compilation_cache_dir", str(folder))
