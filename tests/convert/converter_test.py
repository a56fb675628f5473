"""`convert`: from files of PyTorch weights to checkpoints, and back."""

import itertools

import jax
import numpy as np
import pytest
from drawing import drawn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vrtspike_jax.convert import convert, from_torch
from vrtspike_jax.convert.converter import VGG16_LAYERS
from vrtspike_jax.convert.names import is_buffer
from vrtspike_jax.convert.weights import published_shapes
from vrtspike_jax.losses import load_vgg16
from vrtspike_jax.models import VRT, VRTWithSpike
from vrtspike_jax.models.spynet import SpyNet
from vrtspike_jax.training.checkpoints import load_for_inference
from vrtspike_jax.training.initialise import load_spynet, replace_spynet

BACKBONE = VRT(
    upscale=1,
    window_size=(3, 4, 4),
    depths=(2,) * 7 + (1, 1),
    indep_reconsts=(8,),
    embed_dims=(8,) * 9,
    num_heads=(2,) * 9,
    deformable_groups=2,
    mul_attn_ratio=0.5,
)
MODEL = VRTWithSpike(vrt=BACKBONE, spike_bins=3, channels_per_scale=(8,) * 4, tsa_heads=2)


@pytest.fixture(scope="module")
def state():
    return drawn(published_shapes(MODEL))


@pytest.fixture(scope="module")
def converted(state, tmp_path_factory):
    """A folder with `in.safetensors` and the checkpoint `model`, and what `convert` said."""
    folder = tmp_path_factory.mktemp("converted")
    save_file({f"module.{name}": array for name, array in state.items()}, folder / "in.safetensors")
    done = convert(folder / "in.safetensors", folder / "model", {"tsa_heads": 2})
    return folder, done


def test_a_converted_checkpoint_opens_for_inference(state, converted):
    folder, done = converted
    model, params, config = load_for_inference(folder / "model")
    assert model.tsa_heads == 2 and model.vrt.window_size == (3, 4, 4)
    jax.tree.map(np.testing.assert_array_equal, params, from_torch(state, MODEL))
    assert config.data.voxel.bins == 3 and config.data.clip_length == 3
    assert done.kind == "vrt_spike"
    assert done.parameters == sum(array.size for array in state.values())
    assert done.model["spike_bins"] == 3
    assert sorted(path.name for path in folder.iterdir()) == ["in.safetensors", "model"]


def test_a_checkpoint_goes_back_bit_for_bit_with_buffers(state, converted, tmp_path):
    folder, _ = converted
    done = convert(folder / "model", tmp_path / "out.safetensors")
    back = load_file(tmp_path / "out.safetensors")
    assert {name for name in back if not is_buffer(name)} == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    assert done.kind == "vrt_spike" and done.model["tsa_heads"] == 2
    assert done.parameters == sum(array.size for array in state.values())


def test_pth_in_and_out(state, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    torch.save({"step": 7, "state_dict": tensors}, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "model", {"tsa_heads": 2})
    convert(tmp_path / "model", tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)["params"]
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name


def test_nothing_is_written_when_weights_do_not_fit(state, tmp_path):
    wrong = {name: array for name, array in state.items() if name != "vrt.conv_last.bias"}
    save_file(wrong, tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match=r"in\.safetensors.*missing: vrt\.conv_last\.bias"):
        convert(tmp_path / "in.safetensors", tmp_path / "model", {"tsa_heads": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_unknown_settings_are_refused(converted, tmp_path):
    folder, _ = converted
    for fields, message in (
        ({"tsa_head": 2}, "did you mean 'tsa_heads'"),
        ({"vrt.window": 2}, "window"),
        ({"data.root": ""}, "wanted one of config.model"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(folder / "in.safetensors", tmp_path / "model", fields)
    with pytest.raises(ValueError, match="wanted no fields"):
        convert(folder / "model", tmp_path / "x.safetensors", {"tsa_heads": 2})
    assert not any(tmp_path.iterdir())


def test_destinations_that_cannot_be_are_refused(converted, tmp_path):
    folder, _ = converted
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for source, destination, message in (
        ("in.safetensors", "there", "exists"),
        ("in.safetensors", "x.npz", "wanted .pth"),
        ("in.safetensors", "x.safetensor", "wanted .pth"),
        ("in.safetensors", "file/folder/model", "file is a file, wanted a folder"),
        ("model", "other", "name the destination"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(folder / source, tmp_path / destination)
    assert {path.name for path in tmp_path.iterdir()} == {"there", "file"}


def test_missing_folders_are_made_and_others_may_read_what_is_written(state, converted, tmp_path):
    folder, _ = converted
    convert(folder / "model", tmp_path / "a" / "b" / "out.safetensors")
    convert(folder / "in.safetensors", tmp_path / "c" / "d" / "model", {"tsa_heads": 2})
    # Buffers, which the way back writes, are no parameters.
    done = convert(tmp_path / "a" / "b" / "out.safetensors", tmp_path / "e", {"tsa_heads": 2})
    assert done.parameters == sum(array.size for array in state.values())
    model, _, _ = load_for_inference(tmp_path / "c" / "d" / "model")
    assert model.tsa_heads == 2
    # The same rights as any new file or folder has here.
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "a").rglob("*"), (tmp_path / "c").rglob("*"):
        for made in path:
            usual = tmp_path / ("folder" if made.is_dir() else "file")
            assert made.stat().st_mode == usual.stat().st_mode, made


def test_a_destination_is_replaced_only_when_allowed(tmp_path):
    state = drawn(published_shapes(SpyNet()))
    save_file(state, tmp_path / "in.safetensors")
    (tmp_path / "out.safetensors").write_bytes(b"old")
    with pytest.raises(ValueError, match="exists"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"old"
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", overwrite=True)
    assert load_file(tmp_path / "out.safetensors").keys() == state.keys()


def test_converted_spynet_takes_its_place_in_a_model(tmp_path, state):
    spynet = drawn(published_shapes(SpyNet()), seed=1)
    np.savez(tmp_path / "spynet.npz", **spynet)
    done = convert(tmp_path / "spynet.npz", tmp_path / "spynet.safetensors")
    assert done.kind == "spynet" and done.parameters == 1_440_300
    loaded = load_spynet(tmp_path / "spynet.safetensors")
    params = replace_spynet(from_torch(state, MODEL), loaded, "spynet.safetensors")
    found = params["vrt"]["spynet"]["basic_module_0"]["basic_module_0"]["kernel"]
    wanted = spynet["basic_module.0.basic_module.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="becomes a file"):
        convert(tmp_path / "spynet.npz", tmp_path / "model")


def vgg16(seed=0):
    """Entries of torchvision's file, with a small classifier."""
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    shapes = {"classifier.6.bias": (10,)}
    for index, (c_in, c_out) in zip(VGG16_LAYERS, itertools.pairwise(channels), strict=True):
        shapes[f"features.{index}.weight"] = (c_out, c_in, 3, 3)
        shapes[f"features.{index}.bias"] = (c_out,)
    return drawn(shapes, seed)


def test_vgg16_is_converted_for_the_perceptual_loss(tmp_path):
    state = vgg16()
    save_file(state, tmp_path / "vgg16.safetensors")
    done = convert(tmp_path / "vgg16.safetensors", tmp_path / "out.safetensors")
    assert done.kind == "vgg16"
    params = load_vgg16(tmp_path / "out.safetensors", ("relu5_3",))
    wanted = state["features.28.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["features.28"]["kernel"], wanted)
    assert "classifier.6.bias" not in load_file(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert file.metadata()["weights"] == "not known"


def test_vgg16_of_the_other_normalisation_is_refused(tmp_path):
    # torchvision fills the classifier of IMAGENET1K_FEATURES with NaN.
    state = vgg16() | {"classifier.6.bias": np.full(10, np.nan, np.float32)}
    save_file(state, tmp_path / "vgg16.safetensors")
    with pytest.raises(ValueError, match=r"1/255.*vgg16-397923af\.pth"):
        convert(tmp_path / "vgg16.safetensors", tmp_path / "out.safetensors")
    del state["features.28.bias"], state["classifier.6.bias"]
    save_file(state, tmp_path / "vgg16.safetensors")
    with pytest.raises(ValueError, match=r"without features\.28\.bias"):
        convert(tmp_path / "vgg16.safetensors", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["vgg16.safetensors"]
