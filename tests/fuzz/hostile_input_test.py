"""A few inputs of each kind; `scripts/fuzz.py` runs as many as one likes."""

import checkpoint_targets
import config_targets
import data_targets
import pytest
from breed import breed
from harness import Hang, Report, Target, Undocumented, attack, attack_with_offspring
from hypothesis import strategies as st

NAMES = {
    data_targets: (
        "spikes (.dat)",
        "size of a .dat",
        "alignment log",
        "config.yaml",
        "images",
        "films",
        "paths in a set",
        "metadata.json of a set",
        "records of a set",
    ),
    config_targets: ("configs", "config overrides", "models"),
    checkpoint_targets: (
        "metadata of a checkpoint",
        "checksums.json",
        "files of a checkpoint",
        "position of the data",
        "metrics.jsonl",
        "weight files",
        "released weights",
    ),
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    found = {}
    for module in NAMES:
        for target in module.targets(tmp_path_factory.mktemp(module.__name__)):
            found[target.name] = target
    return found


def test_every_target_is_tested(targets):
    assert set(targets) == {name for names in NAMES.values() for name in names}


@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])
def test_hostile_input_gives_a_result_or_a_documented_error(name, targets):
    target, report = targets[name], Report()
    drawn = attack(target, max(2, int(40 * min(1, 8 * target.weight))), 1, report)
    if target.weight > 0.1:
        attack_with_offspring(target, drawn, 400, 1, report)
    assert report.inputs == report.accepted + report.refused > 0


def target_of(run, names=""):
    return Target("made up", st.binary(max_size=3), run, (ValueError,), names)


def test_the_harness_notices_other_errors():
    def run(value):
        raise KeyError("x")

    with pytest.raises(KeyError):
        attack(target_of(run), 5, 0, Report())


def test_the_harness_notices_errors_without_a_name():
    def run(value):
        raise ValueError("no")

    with pytest.raises(Undocumented):
        attack(target_of(run, names="file.dat"), 5, 0, Report())


def test_the_harness_notices_hangs():
    def run(value):
        while True:
            pass

    target = Target("made up", st.just(0), run, (ValueError,), seconds=0.2)
    with pytest.raises(Hang):
        attack_with_offspring(target, [0], 1, 0, Report())


def test_the_harness_notices_greed():
    def run(value):
        bytearray(2**40)

    with pytest.raises(MemoryError):
        attack(target_of(run), 5, 0, Report())


def test_breeding_keeps_the_kind_of_its_ancestors():
    import random

    rng = random.Random(0)
    for pool in ([b"ab", b"cd"], ["x", "yz"], [(1, b"a"), (2, b"b")], [{"a": 1}, {"b": [1]}]):
        for _ in range(50):
            assert type(breed(rng, pool)) is type(pool[0])
