"""`--mode=eval`: scores the checkpoint of a workdir and writes `<workdir>/eval/metrics.json`."""

from pathlib import Path

import jax
import ml_collections
from rich.console import Console

from vrtspike_jax.evaluation import write_json, write_strips
from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training.checkpoints import check_model, load_for_inference
from vrtspike_jax.training.config import check_config
from vrtspike_jax.training.scoring import Scorer
from vrtspike_jax.training.sharding import make_mesh, put_tree, state_shardings


def score_workdir(config: ml_collections.ConfigDict | None, workdir: str | Path) -> int:
    """Scores every held-out clip, prints the table and writes metrics.json and strips.

    Args:
        config: what to score with (data and eval may differ from training); None takes the one in
            the checkpoint.
        workdir: of a run.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model.
    """
    workdir = Path(workdir)
    prefer = "best" if config is None else config.eval.checkpoint
    checkpoint = files.locate(workdir, prefer)
    meta = files.read_meta(checkpoint)
    model, params, stored = load_for_inference(checkpoint)
    config = stored if config is None else config
    check_config(config)
    check_model(checkpoint, meta, config, params)
    mesh = make_mesh(config.mesh, None)
    params = put_tree(params, state_shardings(params, mesh))
    evaluation = Scorer(model, config, mesh).score(
        params, baselines=True, strips=config.eval.strips
    )
    if jax.process_index() == 0:
        folder = workdir / "eval"
        result = {"step": meta.step, "checkpoint": str(checkpoint), **evaluation.to_json()}
        write_json(result, folder / "metrics.json")
        write_strips(evaluation, folder / "strips")
        console = Console()
        console.print(evaluation.table())
        console.print(f"step {meta.step}; written to {folder / 'metrics.json'}", highlight=False)
    return 0
