"""`scripts/bench_compile.py` reads the compiler's log right."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/bench_compile.py"

LOG = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I1124 02:32:24.387559   17 hlo_pass_pipeline.cc:211]   HLO pass simplification
I1124 02:32:24.387560   17 hlo_pass_pipeline.cc:211]   HLO pass algsimp
I1124 02:32:26.387561   17 hlo_pass_pipeline.cc:206] HLO pass: algsimp time: 2 s (2 s) (cumulative: 2 s, max: 2 s, #called: 1)
I1124 02:32:26.387562   23 hlo_pass_pipeline.cc:211]   HLO pass dce
I1124 02:32:26.387563   17 hlo_pass_pipeline.cc:211]   HLO pass algsimp
I1124 02:32:26.887564   17 hlo_pass_pipeline.cc:206] HLO pass: algsimp time: 500 ms (500 ms) (cumulative: 2.5 s, max: 2 s, #called: 2)
I1124 02:32:27.387565   17 hlo_pass_pipeline.cc:206] HLO pass: simplification time: 3 s (3 s) (cumulative: 3 s, max: 3 s, #called: 1)
I1124 02:32:27.387566   23 hlo_pass_pipeline.cc:206] HLO pass: dce time: 250 us (250 us) (cumulative: 250 us, max: 250 us, #called: 1)
I1124 02:35:28.766996   17 gpu_compiler.cc:2345] GpuCompiler::RunHloPasses for jit_train_step time: 3.5 min (210000000 us) (cumulative: 3.5 min, max: 3.5 min, #called: 1)
"""  # noqa: E501


def test_passes_inside_others_are_taken_off_these_and_threads_are_kept_apart():
    spec = importlib.util.spec_from_file_location("bench_compile", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    phases = script.read_log(LOG.splitlines())
    found = {name: (phase.runs, phase.whole, phase.own) for name, phase in phases.items()}
    assert found == {
        "algsimp": (2, pytest.approx(2.5), pytest.approx(2.5)),
        "simplification": (1, pytest.approx(3.0), pytest.approx(0.5)),
        "dce": (1, pytest.approx(250e-6), pytest.approx(250e-6)),
        "GpuCompiler::RunHloPasses": (1, pytest.approx(210.0), 0.0),
    }
