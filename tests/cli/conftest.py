import pytest
import world
from typer.testing import CliRunner


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint whose model returns the blurred frames."""
    return world.write_checkpoint(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def vrtspike(monkeypatch):
    """Runs a command line in this process; what a user sees is in .stdout, .stderr, .exit_code."""
    from vrtspike_jax.cli.app import app

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")

    def run(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run
