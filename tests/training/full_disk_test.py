import contextlib
import json
import resource

import pytest

from vrtspike_jax.training.metrics_log import MetricsLog, truncate


@contextlib.contextmanager
def full_after(size):
    """No file may grow beyond `size` bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("tensorboard", [True, False])
def test_logging_to_a_full_disk_is_an_error_that_names_the_file(tmp_path, tensorboard):
    log = MetricsLog(tmp_path, 0, tensorboard)
    with full_after(4096), pytest.raises(OSError) as caught:
        # More than any queue of a writer holds: it must not wait for one that has died.
        for step in range(1, 1000):
            log.write(step, {"loss": 0.5, "psnr": 20.0})
    assert str(tmp_path) in str(caught.value.filename)
    log.close()
    truncate(tmp_path / "metrics.jsonl", 1000)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
