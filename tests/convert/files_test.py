"""Weights in files: what can be read and written, and what is refused."""

import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vrtspike_jax.convert import read_state_dict, write_state_dict

STATE = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.index": np.arange(4, dtype=np.int64),
    "b": np.zeros((), np.float32),
}


def assert_same(found, wanted=STATE):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value)
        assert np.asarray(found[name]).dtype == value.dtype


def test_safetensors_come_back_as_they_were(tmp_path):
    write_state_dict(tmp_path / "x.safetensors", STATE, {"weights": "mine"})
    assert_same(read_state_dict(tmp_path / "x.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_npz_is_read(tmp_path):
    np.savez(tmp_path / "x.npz", **STATE)
    assert_same(read_state_dict(tmp_path / "x.npz"))


def test_pth_comes_back_as_it_was(tmp_path):
    pytest.importorskip("torch")
    write_state_dict(tmp_path / "x.pth", STATE)
    assert_same(read_state_dict(tmp_path / "x.pth")["params"])


class Payload:
    """What a hostile file would run while it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_a_pth_that_holds_code_is_refused_and_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"params": Payload()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="more than weights"):
        read_state_dict(tmp_path / "x.pth")


def test_a_damaged_pth_is_named(tmp_path):
    pytest.importorskip("torch")
    for content in (b"", b"no zip", b"PK\x03\x04 cut short"):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pth"):
            read_state_dict(tmp_path / "x.pth")


def test_without_pytorch_a_pth_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"x\.pth.*pip install 'vrtspike-jax\[torch\]'"):
        read_state_dict(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="need PyTorch"):
        write_state_dict(tmp_path / "y.pth", STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_pickles_inside_npz_are_refused_and_not_run(tmp_path):
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        array, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    array.write(pickle.dumps([Payload()]))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", array.getvalue())
    with pytest.raises(ValueError, match=r"x\.npz cannot be read"):
        read_state_dict(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"PK\x03\x04 cut short"])
def test_damaged_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x{suffix} cannot be read"):
        read_state_dict(path)


def test_a_file_cut_short_is_named(tmp_path):
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_state_dict(tmp_path / "x.safetensors")


def test_missing_files_and_other_kinds_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"not found.*x\.safetensors"):
        read_state_dict(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"must be one of \.pth"):
        read_state_dict(tmp_path / "x.h5")
    with pytest.raises(ValueError, match=r"can be written to \.pth"):
        write_state_dict(tmp_path / "x.npz", STATE)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_state_dict(tmp_path / "x.safetensors", STATE)
    with pytest.raises(Exception, match="object"):
        write_state_dict(tmp_path / "x.safetensors", {"a": np.array([object()])})
    assert load_file(tmp_path / "x.safetensors").keys() == STATE.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
