"""Runs a target on many inputs and watches what it does: errors, time, memory."""

import contextlib
import dataclasses
import faulthandler
import gc
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from breed import breed
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader of input from outside.

    Attributes:
        name: for tables.
        inputs: what to feed it.
        run: takes an input. Returns if it is accepted.
        errors: what it may raise; exactly these classes, not those derived from them.
        names: text that every message must hold, such as the file's name.
        weight: inputs of a long run, as a share of those of the quick targets.
        seconds: longest time of one input, on a busy machine.
        limited: whether address space is limited while it runs (not with threads that start late).
    """

    name: str
    inputs: SearchStrategy
    run: Callable[[Any], object]
    errors: tuple[type[Exception], ...]
    names: str = ""
    weight: float = 1.0
    limited: bool = True
    seconds: float = 5.0


@dataclasses.dataclass
class Report:
    """What came of the inputs of one target."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0


# Memory that one input may take beyond what is mapped before.
MAX_GROWTH = 256 * MIB


class Hang(BaseException):
    """An input took longer than it may. No `except Exception` swallows it."""


class Undocumented(Exception):
    """An error of another kind than the target's documentation says, or without the file's name."""


class Greedy(Exception):
    """An input made the process allocate more than its size explains."""


def attack(target: Target, examples: int, number: int, report: Report) -> list[Any]:
    """Feeds inputs that hypothesis draws to a target.

    Args:
        target: what to feed.
        examples: how many inputs.
        number: seed.
        report: is added to.

    Returns:
        The inputs.

    Raises:
        Exception: of the simplest input that made the target fail.
    """
    drawn = []

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def check(value):
        drawn.append(value)
        _feed(target, value, report)

    with _watched(target, examples):
        check()
    return drawn


def attack_with_offspring(
    target: Target,
    ancestors: list[Any],
    examples: int,
    number: int,
    report: Report,
) -> None:
    """Feeds inputs that are bred from others, many times quicker than drawing them.

    Raises:
        Exception: of the first input that made the target fail, with the input as a note.
    """
    rng = random.Random(number)
    with _watched(target, examples):
        for _ in range(examples):
            value = breed(rng, ancestors)
            try:
                _feed(target, value, report)
            except BaseException as error:
                error.add_note(f"input: {value!r:.2000}")
                raise


def _feed(target: Target, value: Any, report: Report) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    try:
        with _time_limit(target.seconds):
            target.run(value)
        report.accepted += 1
    except target.errors as error:
        if type(error) not in target.errors or target.names not in str(error):
            raise Undocumented(f"{type(error).__name__}: {str(error)[:300]}") from error
        report.refused += 1
    finally:
        report.inputs += 1
        report.slowest = max(report.slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MAX_GROWTH:
        raise Greedy(f"peak memory grew by {grown / MIB:.0f} MiB")


@contextlib.contextmanager
def _watched(target: Target, examples: int):
    """Limits memory; ends the process, with a traceback, if it is stuck inside a library."""
    faulthandler.dump_traceback_later(60 + examples * target.seconds, exit=True)
    try:
        with _address_space(MAX_GROWTH) if target.limited else contextlib.nullcontext():
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _time_limit(seconds: float):
    def stop(number, frame):
        raise Hang(f"longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _address_space(extra: int):
    """Allocations beyond what is mapped now plus `extra` bytes (and some for threads) fail."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = _memory(0)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra + 512 * MIB, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def resident_mib() -> float:
    """Memory of this process after a collection, MiB."""
    gc.collect()
    return _memory(1) / MIB


def _memory(field: int) -> int:
    """Bytes mapped (0) or resident (1)."""
    pages = Path("/proc/self/statm").read_text().split()[field]
    return int(pages) * resource.getpagesize()
