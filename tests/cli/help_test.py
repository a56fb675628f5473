import subprocess
import sys

import pytest

import vrtspike_jax
from vrtspike_jax.cli.app import app

COMMANDS = [command.name for command in app.registered_commands]


def test_every_task_has_a_command():
    wanted = "deblur evaluate report simulate inspect prepare doctor convert bench"
    assert set(COMMANDS) == set(wanted.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_and_gives_examples(vrtspike, command):
    result = vrtspike(command, "--help")
    assert result.exit_code == 0
    assert f"vrtspike {command} " in result.stdout.split("Examples:")[1]
    assert "--json" in result.stdout or command == "report"
    (registered,) = [c for c in app.registered_commands if c.name == command]
    assert registered.callback.__doc__


def test_an_unknown_option_is_code_2(vrtspike):
    result = vrtspike("deblur", "--no-such-option")
    assert result.exit_code == 2 and "--no-such-option" in result.stderr


def test_the_version_is_the_package_s(vrtspike):
    assert vrtspike("--version").stdout == f"vrtspike-jax {vrtspike_jax.__version__}\n"


def test_help_is_quick_because_it_loads_neither_jax_nor_opencv():
    code = (
        "import sys; from vrtspike_jax.cli.app import app; "
        "print([m for m in ('jax', 'cv2', 'numpy', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
