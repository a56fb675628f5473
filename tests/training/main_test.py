"""Mistakes on the command line."""

import sys

import pytest
from absl.testing import flagsaver

from vrtspike_jax import main as program


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.num_stepz=3"], "no field 'num_stepz'. Did you mean \"num_steps\""),
        (["--config.data.crop=3"], "no field 'crop'"),
        (["--config.num_steps=abc"], "--config.num_steps=abc: invalid literal"),
        (["--confg=3"], "Unknown command line flag 'confg'. Did you mean: config"),
        (["--mode=trian"], "--mode=trian: value should be one of <train|eval>"),
        (["--config=nowhere.py"], "No such file or directory: 'nowhere.py'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments, message, tmp_path, capsys, monkeypatch):
    config = tmp_path / "config.py"
    config.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        "    values = {'num_steps': 1, 'data': {'crop_size': 8}}\n"
        "    return ml_collections.ConfigDict(values)\n"
    )
    if "nowhere" not in arguments[0]:
        arguments = [f"--config={config}", *arguments]
    # The fields that --config has are looked up in sys.argv.
    monkeypatch.setattr("sys.argv", ["main", *arguments])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
        program.parse_flags(sys.argv)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
