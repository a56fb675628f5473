"""Where the time before a first step goes: trace, lowering, and the compiler's passes.

    python scripts/bench_compile.py --config configs/baseline.py

compiles in a process of its own, without caches, and then times a few steps. `--try` compiles once
more with other options of the compiler, for example `--try xla_gpu_autotune_level=2`; values are
Python literals, several options are joined by commas, and `default` leaves one of ours out. Passes
with a time of their own are the compiler's in turn; phases contain them.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

# The compiler's log: begin and end of each pass, and its timers for longer phases.
_LOG = {
    "TF_CPP_MIN_LOG_LEVEL": "0",
    "TF_CPP_VMODULE": "hlo_pass_pipeline=1,gpu_compiler=1,nvptx_compiler=1",
}
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_LINE = re.compile(r"^[IWE]\d+ \S+ +(\d+) [\w.]+:\d+\]\s+(.*)")
_BEGIN = re.compile(r"^HLO pass (\S+)$")
_TIMER = re.compile(r"^(.*?)(?: for \S+)? time: ([\d.]+) (us|ms|s|min|h)\b")


@dataclasses.dataclass
class Phase:
    """One pass, or a phase of several.

    Attributes:
      runs: how often it ran.
      whole: seconds of all its runs.
      own: the same without the passes in it; 0 for a phase.
    """

    runs: int = 0
    whole: float = 0.0
    own: float = 0.0


def read_log(lines: Iterable[str]) -> dict[str, Phase]:
    """Passes and phases by name, from a compiler's log; threads are added up."""
    phases = collections.defaultdict(Phase)
    inner: dict[str, list[float]] = collections.defaultdict(lambda: [0.0])
    for line in lines:
        if not (parts := _LINE.match(line)):
            continue
        thread, message = parts.groups()
        if _BEGIN.match(message):
            inner[thread].append(0.0)
        elif timer := _TIMER.match(message):
            seconds = float(timer[2]) * _UNITS[timer[3]]
            name = timer[1].removeprefix("HLO pass: ")
            phase, stack = phases[name], inner[thread]
            phase.runs, phase.whole = phase.runs + 1, phase.whole + seconds
            if name != timer[1]:
                phase.own += seconds - (stack.pop() if len(stack) > 1 else 0)
                stack[-1] += seconds
    return dict(phases)


def main() -> None:
    """Compiles once for each set of options and prints what it took."""
    args = _arguments()
    if args.child is not None:
        print(json.dumps(_measure(args, json.loads(args.child))))
        return
    for options in ["", *args.options]:
        pairs = dict(pair.split("=", 1) for pair in options.split(",") if pair)
        _report(options or "our options", *_run(pairs), args.rows)


def _run(options: dict[str, str]) -> tuple[dict, dict[str, Phase]]:
    command = [sys.executable, *sys.argv, "--child", json.dumps(options)]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | _LOG
    with tempfile.NamedTemporaryFile("w+", errors="replace") as log:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.seek(0)
        if done.returncode:
            raise SystemExit("".join(log.readlines()[-30:]))
        return json.loads(done.stdout.splitlines()[-1]), read_log(log)


def _measure(args: argparse.Namespace, options: dict[str, str]) -> dict:
    import jax

    from vrtspike_jax import benchmark, compiler
    from vrtspike_jax.cli.configs import load_config

    chosen = _compiler_options(options)
    compiler.options = lambda: chosen  # what workloads are jitted with, and could only be added to
    config = load_config(args.config, args.set)
    workload = benchmark.build_workload(config, args.mode, height=args.size, width=args.size)
    times = [time.perf_counter()]
    traced = workload.step.trace(*workload.args)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    state, *rest = workload.args
    state, _ = jax.block_until_ready(compiled(state, *rest))
    times.append(time.perf_counter())
    seconds = [b - a for a, b in itertools.pairwise(times)]
    steps = []
    for _ in range(args.steps):
        start = time.perf_counter()
        state, outputs = compiled(state, *rest)
        jax.block_until_ready((state, outputs))
        steps.append(time.perf_counter() - start)
    return {
        **dict(zip(("trace", "lower", "compile", "first step"), seconds, strict=True)),
        "step": statistics.median(steps),
        "GiB": benchmark.compiled_memory(compiled)["total"] / 2**30,
        "traced": _count_traced(lowered.as_text()),
        "compiled": _count_compiled(compiled.as_text()),
    }


def _compiler_options(options: dict[str, str]) -> dict | None:
    """Ours and then `options`; those that are "default" are left to the compiler."""
    from vrtspike_jax import compiler
    from vrtspike_jax.cli.configs import parse_override

    chosen = dict(compiler.options() or {})
    chosen |= dict(parse_override(f"{name}={value}") for name, value in options.items())
    return {name: value for name, value in chosen.items() if value != "default"} or None


def _count_traced(text: str) -> dict[str, int]:
    counts = collections.Counter(re.findall(r"stablehlo\.(\w+)", text))
    names = ("convolution", "dot_general", "while", "slice", "reduce", "scatter")
    kernels = text.count("custom_call @__gpu$xla.gpu.triton")
    return {"operations": counts.total(), "Triton kernels": kernels} | {n: counts[n] for n in names}


def _count_compiled(text: str) -> dict[str, int]:
    counts = collections.Counter(re.findall(r" ([a-z][\w-]*)\(", text))
    kinds = collections.Counter(re.findall(r"kind=(\w+)", text))
    targets = collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text))
    return {"instructions": counts.total()} | dict(kinds) | dict(targets.most_common(8))


def _report(title: str, result: dict, phases: dict[str, Phase], rows: int) -> None:
    print(f"\n{title}")
    for name in ("trace", "lower", "compile", "first step"):
        print(f"  {result[name]:8.1f} s  {name}")
    print(f"  {1e3 * result['step']:8.1f} ms a step, {result['GiB']:.2f} GiB by the compiler")
    for name in ("traced", "compiled"):
        print(f"  {name}: " + ", ".join(f"{k} {v}" for k, v in result[name].items()))
    print("     own s   whole s   runs  phase or pass of the compiler (threads added up)")
    by_time = sorted(phases.items(), key=lambda item: -item[1].whole)
    longest = [item for item in by_time if not item[1].own][:rows]
    longest += sorted(by_time, key=lambda item: -item[1].own)[:rows]
    for name, phase in longest:
        own = f"{phase.own:8.2f}" if phase.own else " " * 8
        print(f"  {own}  {phase.whole:8.2f} {phase.runs:6d}  {name}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/baseline.py")
    parser.add_argument("--set", action="append", help="override of the config, key=value")
    parser.add_argument("--mode", choices=("train", "infer"), default="train")
    parser.add_argument("--size", type=int, help="height and width of a clip (else the config's)")
    parser.add_argument("--steps", type=int, default=10, help="steps to time afterwards")
    parser.add_argument("--rows", type=int, default=30, help="passes and phases to print")
    parser.add_argument("--try", action="append", default=[], dest="options", help="name=value,...")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
