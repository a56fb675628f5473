"""Finds the fastest algorithms of cuBLAS and cuDNN for the shipped configs on this machine's GPU.

    python scripts/tune.py

compiles train steps and inference of the shipped configs without the results known so far, and
writes what the compiler found to `vrtspike_jax/tuned.pbtxt`, from where every compilation takes it.
Results for other GPUs, and for other versions of the compiler, stay there. Run it again when the
model's operations have changed: what is out of date is tuned as if it were not there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vrtspike_jax import compiler

# Config and mode, as shipped: their shapes are those of a first run.
WORKLOADS = (
    "configs/baseline.py:train",
    "configs/baseline.py:infer",
    "configs/small.py:train",
)
HEADER = f"# Written by scripts/tune.py; {compiler.__name__} says what for."


def entries(text: str) -> list[str]:
    """The entries of a file of results, each as one line."""
    found, depth, parts = [], 0, []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        parts.append(line)
        depth += line.count("{") - line.count("}")
        if depth == 0:
            found.append(" ".join(parts))
            parts = []
    return found


def origin(entry: str) -> tuple[str, ...]:
    """The GPU and the version of the compiler that an entry is for, as the compiler writes them."""
    words = entry.split()
    return tuple(words[words.index(name) + 1] for name in ("device:", "codegen_version:"))


def merge(known: Iterable[str], new: Iterable[str]) -> list[str]:
    """The new entries, one for each operation, and those known for another GPU or version."""
    renewed = {origin(entry) for entry in new}
    kept = [entry for entry in known if origin(entry) not in renewed]
    by_key = {entry.partition(" value {")[0]: entry for entry in (*kept, *new)}
    return [by_key[key] for key in sorted(by_key)]


def main() -> None:
    """Tunes each workload in a process of its own and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workloads", nargs="*", default=WORKLOADS, help="CONFIG:MODE")
    parser.add_argument("--out", type=Path, default=compiler.TUNED)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _compile(*args.workloads[0].rsplit(":", 1))
        return
    new = []
    for workload in args.workloads:
        new += _tune(workload)
        print(f"{workload}: {len(merge([], new))} results so far", flush=True)
    known = entries(args.out.read_text()) if args.out.exists() else []
    merged = merge(known, new)
    args.out.write_text("\n".join([HEADER, *merged]) + "\n")
    print(f"{args.out}: {len(merged)} results, {len(merged) - len(merge([], new))} of them kept")


def _tune(workload: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.pbtxt"
        flags = os.environ.get("XLA_FLAGS", "") + f" --xla_gpu_dump_autotune_results_to={path}"
        # A cache of whole programs would leave nothing to tune.
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        command = [sys.executable, __file__, "--child", workload]
        if subprocess.run(command, env=environment | {"XLA_FLAGS": flags}).returncode:
            raise SystemExit(f"{workload}: not tuned; nothing was written")
        return entries(path.read_text())


def _compile(config_path: str, mode: str) -> None:
    import jax

    from vrtspike_jax import benchmark
    from vrtspike_jax.cli.configs import load_config

    if jax.default_backend() != "gpu":
        raise SystemExit(f"{__file__}: found {jax.default_backend()}, want a GPU to tune for")
    if jax.__version_info__ < compiler.TUNED_SINCE:
        wanted = ".".join(map(str, compiler.TUNED_SINCE))
        raise SystemExit(f"{__file__}: found JAX {jax.__version__}, want {wanted} or later")
    config = load_config(config_path, [])
    untuned = compiler.options(tuned=False)
    compiler.options = lambda: untuned  # what workloads are jitted with
    workload = benchmark.build_workload(config, mode)
    workload.step.lower(*workload.args).compile()


if __name__ == "__main__":
    main()
