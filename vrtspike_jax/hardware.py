"""What JAX runs on: device names, memory, and rates measured on the spot."""

import dataclasses
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

_PACKAGES = ("vrtspike-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class DeviceInfo:
    """The devices of one run. `memory_bytes`: of one device, None where JAX does not say."""

    platform: str
    kind: str
    count: int
    memory_bytes: int | None


def describe_devices() -> DeviceInfo:
    """The local devices of the default backend."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
    return DeviceInfo(devices[0].platform, kind, len(devices), stats.get("bytes_limit"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide how fast and how exact a run is."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def free_memory(device: jax.Device | None = None) -> int:
    """Bytes that a new computation may take on the device (on CPU: of the machine's memory)."""
    device = device or jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _free_host_memory()


def _free_host_memory() -> int:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    # A container's own limit (cgroup v2) can be far below the machine's memory.
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def peak_memory(device: jax.Device | None = None) -> int | None:
    """Most bytes in use on the device since the start; None where the platform does not count."""
    stats = (device or jax.local_devices()[0]).memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def matrix_rate(dtype: jnp.dtype = jnp.bfloat16, size: int | None = None) -> float:
    """Measured operations a second of one large square matrix product in `dtype`."""
    if size is None:
        size = 768 if jax.default_backend() == "cpu" else 8192
    keys = jax.random.split(jax.random.key(0))
    # Random data: chips clock higher on zeros.
    a, b = (jax.random.normal(key, (size, size), jnp.float32).astype(dtype) for key in keys)
    return 2 * size**3 / _best_seconds(jax.jit(jnp.matmul), a, b)


def copy_bandwidth(size: int | None = None) -> float:
    """Measured bytes a second, read plus written, of one large on-device pass over memory."""
    if size is None:
        size = 2**26 if jax.default_backend() == "cpu" else 2**31
    x = jnp.ones(size // 4, jnp.float32)
    return 2 * size / _best_seconds(jax.jit(lambda x: x + 1), x)


def input_rate(size: int = 2**25) -> float:
    """Measured bytes a second from host to device memory."""
    import numpy as np

    x = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    return size / _best_seconds(jax.device_put, x)


def _best_seconds(function, *args, repeats: int = 5) -> float:
    jax.block_until_ready(function(*args))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        best = min(best, time.perf_counter() - start)
    return best
