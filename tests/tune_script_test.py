"""`scripts/tune.py` reads and merges the compiler's results; the shipped ones are whole."""

import importlib.util
from pathlib import Path

import pytest

from vrtspike_jax import compiler

SCRIPT = Path(__file__).parents[1] / "scripts/tune.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tune", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(device: str, operation: str, version: str, algorithm: int) -> str:
    return (
        f'entries {{ key {{ target {{ device: "{device}" hlo_fingerprint: "{operation}" }} '
        f'environment {{ codegen_version: "{version}" }} }} '
        f"value {{ optimal_config {{ gemm {{ algorithm: {algorithm} }} }} }} }}"
    )


def test_an_entry_over_many_lines_becomes_one_line(script):
    written = entry("a", "b", "c", 1)
    as_the_compiler_has_it = "# comment\n\n" + written.replace("{ ", "{\n  ").replace(" }", "\n}")
    assert script.entries(as_the_compiler_has_it + "\n" + written) == [written] * 2


def test_new_results_replace_those_of_the_same_gpu_and_version_alone(script):
    old = [entry("h100", "stale", "1", 0), entry("h100", "x", "0", 1), entry("a100", "x", "1", 2)]
    new = [entry("h100", "x", "1", 3), entry("h100", "x", "1", 4)]
    assert set(script.merge(old, new)) == {old[1], old[2], new[1]}


def test_shipped_results_are_one_for_each_operation_in_order(script):
    lines = compiler.TUNED.read_text().splitlines()
    shipped = script.entries("\n".join(lines))
    assert shipped == lines[1:] and len(shipped) > 100
    assert script.merge([], shipped) == shipped


@pytest.mark.parametrize("version, taken", [((0, 10, 2), False), ((0, 11, 2), True)])
def test_results_are_taken_on_gpus_by_compilers_that_can_read_them(monkeypatch, version, taken):
    tried = []
    monkeypatch.setattr(compiler, "_knows", lambda name, value: tried.append(value) or True)
    monkeypatch.setattr(compiler.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compiler.jax, "__version_info__", version)
    assert (str(compiler.TUNED) in compiler.options().values()) == taken
    assert (str(compiler.TUNED) in tried) == taken
    assert str(compiler.TUNED) not in compiler.options(tuned=False).values()
    monkeypatch.setattr(compiler.jax, "default_backend", lambda: "cpu")
    assert compiler.options() is None
