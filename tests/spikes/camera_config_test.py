import pytest

from vrtspike_jax.spikes import (
    CameraConfig,
    CameraConfigError,
    find_camera_config,
    read_camera_config,
    write_camera_config,
)

SPIKECV = """filename: some_set
spike_w: 400
spike_h: 250
is_labeled: false
labeled_data_type: [0]
labeled_data_suffix: None
"""


def test_a_spikecv_file_gives_height_and_width(tmp_path):
    (tmp_path / "config.yaml").write_text(SPIKECV)
    expected = CameraConfig(height=250, width=400, name="some_set")
    assert read_camera_config(tmp_path / "config.yaml") == expected
    assert read_camera_config(tmp_path) == expected


def test_what_is_written_reads_back(tmp_path):
    config = CameraConfig(height=360, width=640, head_columns=16, name="mine")
    write_camera_config(tmp_path, config)
    assert read_camera_config(tmp_path) == config


def test_the_nearest_config_above_a_recording_is_found(tmp_path):
    (tmp_path / "config.yaml").write_text(SPIKECV)
    folder = tmp_path / "sequence" / "spike"
    folder.mkdir(parents=True)
    assert find_camera_config(folder / "0.dat").width == 400
    # Another program's file of that name is passed over.
    (folder / "config.yaml").write_text("learning_rate: 1\n")
    assert find_camera_config(folder / "0.dat").width == 400
    (folder / "config.yaml").write_text("spike_h: 8\nspike_w: 16\n")
    assert find_camera_config(folder / "0.dat").width == 16


def test_no_config_is_none(tmp_path):
    folder = tmp_path / "a" / "b" / "c" / "d"
    folder.mkdir(parents=True)
    assert find_camera_config(folder / "0.dat") is None


@pytest.mark.parametrize(
    "text",
    [
        "spike_w: 400\n",
        "spike_w: 400\nspike_h: 0\n",
        "spike_w: 400\nspike_h: -250\n",
        "spike_w: 400\nspike_h: 250.5\n",
        "spike_w: 400\nspike_h: '250'\n",
        "spike_w: 400\nspike_h: yes\n",
        "spike_w: 400\nspike_h: 99999999\n",
        "spike_w: 400\nspike_h: 250\nhead_columns: -1\n",
        "- spike_w\n",
        "",
        "spike_w: [unclosed\n",
        "spike_w: !!python/object/apply:os.getcwd []\nspike_h: 250\n",
    ],
)
def test_a_useless_config_raises_and_names_itself(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CameraConfigError, match=r"config\.yaml"):
        read_camera_config(tmp_path)


def test_a_missing_config_raises(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_camera_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nspike_h: *a\nspike_w: 4\n",
        "a: &a {x: 1}\nspike_h: 3\nspike_w: 4\n<<: *a\n",
        "spike_h: " + "[" * 3000,
        "spike_h: !!timestamp x\nspike_w: 4\n",
        "spike_h: 2001-99-99\nspike_w: 4\n",
        "spike_h: !!bool x\nspike_w: 4\n",
        "spike_h: 3\nspike_w: 4\n#" + "x" * 2**16,
    ],
    ids=["alias", "merge", "deep", "timestamp", "date", "bool", "long"],
)
def test_yaml_that_can_fill_memory_or_break_the_parser_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CameraConfigError, match=r"config\.yaml"):
        read_camera_config(tmp_path)
