import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "scripts" / "colab_tpu.ipynb"
SMALL = (
    "--config.num_steps=6 --config.log_every_steps=1 --config.checkpoint_every_steps=100 "
    "--config.eval_every_steps=100 --config.data.scenes.eval_clips=1 --config.tensorboard=False"
)


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_plain_python_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), cell["id"], "exec")
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
def test_the_notebook_trains_resumes_and_deblurs(tmp_path, monkeypatch, capfd):
    # A folder that looks like a clone, so that results do not land in the real one.
    for name in ("configs", "vrtspike_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("VRTSPIKE_FLAGS", SMALL)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    # The step runs six times; optimising it for the CPU takes minutes.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    names = {"__name__": "notebook"}
    for number, source in enumerate(code_cells()):
        exec(compile(source, f"cell {number}", "exec"), names)
    output = capfd.readouterr().out
    assert "resuming at step" in output
    runs = tmp_path / "runs"
    lines = [json.loads(x) for x in (runs / "colab" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert len(list((runs / "colab_restored").glob("*.png"))) == 6
    assert (runs / "colab_strip.png").stat().st_size > 1000
    assert "blurred: " in output and "restored: " in output
