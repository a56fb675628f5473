"""Where a compiled step spends its time: device profile by named scope.

The profiler says how long each compiled instruction ran; the compiled program's text says which
named scope (module path) each instruction comes from. Joining both gives the share of every stage
and operation, with parents never counted on top of their children: only leaf instructions are
summed. A fusion belongs to the scope that the compiler named it after, that of its last operation.
"""

import collections
import dataclasses
import itertools
import re
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import jax

# Instructions that only contain others; their time is their bodies' time.
_CONTAINERS = {"while", "conditional", "call", "async-start", "async-done"}
_TUPLE = r"\((?:/\*index=\d+\*/|[^=])*?\)"
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?([\w.\-]+) = (?:{_TUPLE}|\S+) ([\w\-]+)\(")
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="([^"]*)"')
_WRAPPER = re.compile(r"^(?:jvp|vmap|transpose|checkpoint|remat)\((.*)\)$")
# Path parts that tracing adds and no module is called.
_NOISE = re.compile(
    r"^(jit\(.*\)|pjit|eval_jaxpr|while|body|cond|branch_\d+_fun|closed_call|checkpoint|remat\d*|"
    r"shard_map|rematted_computation|custom_vjp_call|custom_jvp_call|core_call|transpose|jvp|vmap|"
    r"\w*scan\w*|\w+\.\w+)?$"  # Linen's scopes of methods other than __call__, `stage1.helper`
)
# Modules that hold everything else: not worth a level of a table.
ROOTS = ("VRTWithSpike", "VRT", "vrt", "ShiftUNet", "UNetSpike")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One compiled instruction.

    Attributes:
      opcode: of the compiled program, "fusion" or "custom-call" for the most part.
      path: module path, outermost first.
      operation: the traced operation, "dot_general" for example.
      phase: "forward", "backward", or "recomputed" (forward again, in the backward pass).
    """

    opcode: str
    path: tuple[str, ...]
    operation: str
    phase: str


@dataclasses.dataclass(frozen=True)
class Share:
    """Device time of one name: milliseconds a step, fraction of all device time, kernel runs."""

    name: str
    milliseconds: float
    fraction: float
    runs_per_step: float


def read_instructions(compiled_text: str) -> dict[str, Instruction]:
    """Instruction name -> scope, from `compiled.as_text()`."""
    found = {}
    for line in compiled_text.splitlines():
        match = _INSTRUCTION.match(line)
        if match:
            op_name = _OP_NAME.search(line)
            found[match[1]] = _parse_scope(match[2], op_name[1] if op_name else "")
    return found


def _parse_scope(opcode: str, op_name: str) -> Instruction:
    # Several merged instructions are joined by ';': the first names the scope.
    parts = []
    phase = "backward" if "transpose(" in op_name else "forward"
    if "rematted_computation" in op_name:
        phase = "recomputed"
    for part in _split(op_name.split(";")[0]):
        while match := _WRAPPER.match(part):
            part = match[1]
        found = [p for p in _split(part) if not _NOISE.match(p)]
        if found != parts:  # recomputation repeats the path: transpose(jvp(a))/jvp(a)/...
            parts.extend(found)
    operation = parts.pop() if parts else opcode
    return Instruction(opcode, tuple(parts), operation, phase)


def _split(op_name: str) -> list[str]:
    """Splits at slashes outside parentheses: 'jvp(a/b)/c' -> ['jvp(a/b)', 'c']."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(op_name):
        depth += (char == "(") - (char == ")")
        if char == "/" and depth == 0:
            parts.append(op_name[start:i])
            start = i + 1
    return [*parts, op_name[start:]]


def measure_instructions(run: Callable[[], object], steps: int) -> dict[str, tuple[float, int]]:
    """Profiles `steps` calls of `run`; instruction name -> (seconds in all, number of runs).

    `run` must block until its result is ready.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                run()
        totals: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, seconds in _device_events(path):
                totals[name][0] += seconds
                totals[name][1] += 1
    return {name: (seconds, int(runs)) for name, (seconds, runs) in totals.items()}


def _device_events(path: Path) -> Iterable[tuple[str, float]]:
    return device_events(jax.profiler.ProfileData.from_file(str(path)).planes)


def device_events(planes: Iterable) -> Iterable[tuple[str, float]]:
    """(instruction or kernel, seconds) of everything that ran on the devices of a profile."""
    planes = list(planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    # On CPU the instructions run in threads of the host itself.
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        lines = list(plane.lines)
        # Beside what ran, some platforms list the same time by step, module and scope.
        ran = [line for line in lines if line.name.startswith(("Stream", "XLA Ops"))]
        for line in ran or lines:
            for event in line.events:
                name = str(dict(event.stats).get("hlo_op", ""))
                if name.startswith("command_buffer"):
                    name = event.name  # of a CUDA graph only the kernel's name is left
                if name and not event.name.startswith("end: "):
                    yield name, event.duration_ns * 1e-9


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Shares of device time; "(no scope)" is what the compiler put in, copies for the most part."""

    steps: int
    device_milliseconds: float
    stages: list[Share]
    operations: list[Share]
    instructions: list[Share]


def break_down(
    instructions: dict[str, Instruction],
    measured: dict[str, tuple[float, int]],
    steps: int,
    depth: int = 1,
    top: int = 25,
    roots: Collection[str] = ROOTS,
) -> Breakdown:
    """Joins a profile with the program's scopes.

    Args:
      instructions: from `read_instructions`.
      measured: from `measure_instructions`.
      steps: how many steps were profiled.
      depth: how many parts of the module path name a stage.
      top: how many single instructions to list.
      roots: leading parts of module paths to leave out.
    """
    stages, operations, singles = (collections.defaultdict(lambda: [0.0, 0.0]) for _ in range(3))
    # A kernel is called like its instruction, with all signs but letters and digits replaced.
    kernels = {re.sub(r"\W", "_", name): found for name, found in instructions.items()}
    unknown = Instruction("?", (), "unattributed", "forward")
    total = 0.0
    for name, (seconds, runs) in measured.items():
        found = instructions.get(name) or kernels.get(name, unknown)
        if found.opcode in _CONTAINERS:
            continue
        total += seconds
        path = tuple(itertools.dropwhile(lambda part: part in roots, found.path))
        stage = "/".join(path[:depth]) or "(no scope)"
        direction = f" ({found.phase})" if found.phase != "forward" else ""
        kind = "/".join(_kinds(path[depth:] or path[-1:]))
        operation = _kinds([found.operation])[0]
        keys = (
            (stages, stage + direction),
            (operations, f"{kind or '(no scope)'}: {operation}{direction}"),
            (singles, f"{name} [{found.opcode}] {'/'.join(path)}: {found.operation}"),
        )
        for table, key in keys:
            table[key][0] += seconds
            table[key][1] += runs
    return Breakdown(
        steps,
        1e3 * total / steps,
        _shares(stages, total, steps),
        _shares(operations, total, steps)[: 2 * top],
        _shares(singles, total, steps)[:top],
    )


def _kinds(path: Iterable[str]) -> list[str]:
    """Path parts without their numbers, so that alike blocks of one network add up."""
    return [re.sub(r"_?\d+(_\d+)*$", "", part) for part in path]


def _shares(table: dict[str, list[float]], total: float, steps: int) -> list[Share]:
    rows = [
        Share(name, 1e3 * seconds / steps, seconds / max(total, 1e-12), runs / steps)
        for name, (seconds, runs) in table.items()
    ]
    return sorted(rows, key=lambda row: -row.milliseconds)
