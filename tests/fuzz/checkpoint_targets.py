"""Checkpoints: what they say of themselves, Orbax's files, data positions; log lines; weights."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
from damage import VALUES, changed, damage, damaged
from harness import Target
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
import stand_in

from vrtspike_jax import weights
from vrtspike_jax.convert.files import read_state_dict
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.iterator import TrainIterator
from vrtspike_jax.data.pipeline import train_iterator
from vrtspike_jax.models.build import build_model
from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training import checkpoints
from vrtspike_jax.training.config import changes, to_plain
from vrtspike_jax.training.initialise import initial_state
from vrtspike_jax.training.metrics_log import truncate
from vrtspike_jax.training.sharding import make_mesh

_DAMAGED = (files.DamagedCheckpointError, files.CheckpointMismatchError)


def targets(folder: Path) -> list[Target]:
    """All of them; a checkpoint of a tiny model is written to `folder` first."""
    config = stand_in.tiny_config()
    stand_in.register()
    whole = _save(folder / "run", config)
    iterator = train_iterator(config.data, config.seed)
    return [
        _meta(folder / "meta" / "3", whole, config),
        _checksums(folder / "sums" / "3", whole),
        _restore(folder / "restored" / "3", whole),
        _data_position(iterator),
        _log_lines(folder / "metrics.jsonl"),
        _weights(folder),
        _released_weights(folder / "small.safetensors", config),
    ]


def _save(workdir: Path, config) -> Path:
    model = build_model(config.model)
    state = initial_state(model, config, make_mesh(config.mesh, None, jax.devices()[:1]))
    params = state.params
    meta = files.Meta(
        step=3,
        config=to_plain(config),
        versions=checkpoints.versions(),
        metrics={"psnr_rgb": 20.0},
        best={"step": 3, "psnr_rgb": 20.0},
        last_eval_step=3,
        params=checkpoints.param_shapes(params),
    )
    store = checkpoints.CheckpointStore(workdir / "checkpoints")
    store.save(state, b"{}", meta)
    store.close()
    return workdir / "checkpoints" / "3"


def _texts(samples):
    """JSON files: changed values, damaged bytes, and what JSON parsers stumble over."""
    whole = [json.dumps(sample).encode() for sample in samples]
    odd = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"NaN", b"\xff", b""])
    values = changed(samples).map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))
    return st.one_of(values, values, damaged(whole), odd)


def _meta(checkpoint: Path, whole: Path, config) -> Target:
    (checkpoint / "meta").mkdir(parents=True)
    path = checkpoint / "meta" / "metadata"
    sample = json.loads((whole / "meta" / "metadata").read_text())
    shapes = {name: np.zeros(shape, np.float32) for name, shape in sample["params"].items()}
    params: dict = {}
    for name, value in shapes.items():
        node = params
        *parents, leaf = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value

    def run(data):
        path.write_bytes(data)
        files.psnr_of(checkpoint)
        files.locate(checkpoint.parent)
        meta = files.read_meta(checkpoint)
        checkpoints.check_model(checkpoint, meta, config, params)
        changes(meta.config, to_plain(config))

    return Target("metadata of a checkpoint", _texts([sample]), run, _DAMAGED, "3")


def _checksums(checkpoint: Path, whole: Path) -> Target:
    del whole
    checkpoint.mkdir(parents=True)
    (checkpoint / "a").write_bytes(b"abc")
    files.write_checksums(checkpoint)
    path = checkpoint / files.CHECKSUMS
    sample = json.loads(path.read_text())

    def run(data):
        path.write_bytes(data)
        files.verify(checkpoint)

    return Target("checksums.json", _texts([sample]), run, _DAMAGED[:1], "3")


def _restore(checkpoint: Path, whole: Path) -> Target:
    """Any file of a checkpoint is damaged, and the checksums with it, as by an attacker."""
    names = sorted(
        str(path.relative_to(whole))
        for path in whole.rglob("*")
        if path.is_file() and path.name != files.CHECKSUMS
    )
    shutil.copytree(whole, checkpoint)
    (checkpoint / files.CHECKSUMS).unlink()
    meta = json.loads((whole / "meta" / "metadata").read_text())
    new_meta = changed([meta]).map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))

    def run(value):
        number, edits, metadata = value
        name = names[number % len(names)]
        if edits:
            data = damage((whole / name).read_bytes(), b"", edits)
        else:
            name, data = "meta/metadata", metadata
        (checkpoint / name).write_bytes(data)
        try:
            checkpoints.load_for_inference(checkpoint)
        finally:
            shutil.copyfile(whole / name, checkpoint / name)

    inputs = st.tuples(st.integers(0, 2**16), st.just(b"") | st.binary(max_size=15), new_meta)
    errors = (*_DAMAGED, ValueError)
    return Target("files of a checkpoint", inputs, run, errors, weight=0.05, limited=False)


def _data_position(iterator: TrainIterator) -> Target:
    sample = iterator.get_state()

    def run(state):
        iterator.set_state(state)
        assert iterator.get_state()["next_clip"] >= 0

    return Target("position of the data", changed([sample]) | VALUES, run, (ValueError, DataError))


def _log_lines(path: Path) -> Target:
    lines = [b'{"step": 3, "loss": 0.1}\n{"step": 4, "loss": null}\n{"step": 12, "event": "x"}\n']

    def run(data):
        path.write_bytes(data)
        truncate(path, 4)
        for line in path.read_text(encoding="utf-8").splitlines():
            assert 0 <= json.loads(line)["step"] <= 4

    return Target("metrics.jsonl", _texts([[1]]) | damaged(lines), run, (), weight=0.5)


def _npz(arrays, bomb=False) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    if bomb:
        # A header that promises more than any memory holds.
        with zipfile.ZipFile(buffer, "a") as archive:
            head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
            head = head.ljust(117) + b"\n"
            data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
            archive.writestr("second.weight.npy", data)
    return buffer.getvalue()


def _weights(folder: Path) -> Target:
    arrays = {"first.weight": np.zeros((4, 3, 3, 3), np.float32), "first.bias": np.ones(4)}
    objects = {"first.weight": np.array([{}], dtype=object), "first.bias": np.ones(2)}
    samples = {
        ".npz": [_npz(arrays), _npz(arrays, bomb=True), _npz(objects)],
        ".safetensors": [safetensors_bytes({k: v.astype(np.float32) for k, v in arrays.items()})],
    }

    def run(value):
        suffix, data = value
        path = folder / f"weights{suffix}"
        path.write_bytes(data)
        total = sum(array.nbytes for array in read_state_dict(path).values())
        assert total <= 64 * len(data)

    inputs = st.one_of(
        *(st.tuples(st.just(suffix), damaged(whole)) for suffix, whole in samples.items())
    )
    return Target("weight files", inputs, run, (ValueError,), "weights")


def _released_weights(path: Path, config) -> Target:
    params = {"first": {"kernel": np.zeros((3, 4), np.float32), "bias": np.ones(4, np.float32)}}
    weights.save_weights(path, params, config, steps="3")
    whole = path.read_bytes()
    clash = {"first": np.ones(4, np.float32), "first/kernel": np.zeros((3, 4), np.float16)}

    def made(text, arrays):
        return safetensors_bytes(arrays, {"format": weights.FORMAT, "config": text})

    plain = to_plain(config)
    samples = [whole, made(json.dumps(plain), clash), made("[" * 100_000, {})]
    configs = st.one_of(changed([plain]), VALUES).map(lambda value: made(json.dumps(value), {}))

    def run(data):
        path.write_bytes(data)
        _, tree, _ = weights.load_weights(path)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) <= 4 * len(data)

    inputs = st.one_of(damaged(samples), configs)
    return Target("released weights", inputs, run, (ValueError,), weight=0.2)
