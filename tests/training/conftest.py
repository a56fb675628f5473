import os

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Many tests train the same small model: keep what was compiled for the session."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # for processes of their own
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (folder, 0), strict=True):
        jax.config.update(name, value)
    yield
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
