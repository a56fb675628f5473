import pytest
from example_sets import PlainSet


@pytest.fixture
def plain_set(tmp_path) -> PlainSet:
    """Two sequences of 5 and 4 frames to train on, one of 5 to score."""
    plain = PlainSet(tmp_path / "set")
    plain.add(sequence=0, frames=5)
    plain.add(sequence=1, frames=4)
    plain.add(split="test", sequence=2, frames=5)
    return plain
