"""What the pages name must exist, and docs/from-the-original.md must leave nothing out."""

import re
import sys
from pathlib import Path

import ml_collections
import pytest
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import baseline
from vrtspike_jax.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "from-the-original.md"
PAGES = [GUIDE, ROOT / "docs" / "README.md", ROOT / "README.md", ROOT / "README.zh-CN.md"]
# Keys of vrt_spike_baseline.yaml, commented-out ones included; test_refactor.yaml has no others.
YAML_KEYS = {
    "": "SEED",
    "DATA": "ROOT TRAIN_SPLIT VAL_SPLIT CROP_SIZE CLIP_LEN K NUM_VOXEL_BINS VOXEL_CACHE_DIRNAME "
    "SPIKE_DIR USE_PRECOMPUTED_VOXELS USE_RAM_CACHE CACHE_SIZE_GB IMAGE_EXTS ALIGN_LOG_PATHS "
    "NORM.MEAN NORM.STD",
    "MODEL": "USE_SPIKE VRT_CFG CHANNELS_PER_SCALE LAYERS VRT.USE_CHECKPOINT_ATTN "
    "VRT.USE_CHECKPOINT_FFN SPIKE_TSA.HEADS SPIKE_TSA.ADAPTIVE_CHUNK SPIKE_TSA.MAX_BATCH_TOKENS "
    "SPIKE_TSA.CHUNK_SIZE SPIKE_TSA.CHUNK_SHAPE FUSE.TYPE FUSE.HEADS FUSE.ADAPTIVE_CHUNK "
    "FUSE.MAX_BATCH_TOKENS FUSE.CHUNK_SIZE FUSE.CHUNK_SHAPE WINDOW_SIZE IMG_SIZE_H IMG_SIZE_W",
    "DATALOADER": "TOTAL_WORKERS TRAIN_WORKERS VAL_WORKERS TRAIN_PREFETCH_FACTOR "
    "VAL_PREFETCH_FACTOR PIN_MEMORY PERSISTENT_WORKERS",
    "TRAIN": "RESUME_FROM_CHECKPOINT CHECKPOINT_PATH EPOCHS DDP_COMPRESSION BATCH_SIZE "
    "VAL_BATCH_SIZE COMPILE_MODEL GRADIENT_ACCUMULATION_STEPS MAX_GRAD_NORM OPTIM.TYPE OPTIM.LR "
    "OPTIM.BETAS OPTIM.WEIGHT_DECAY SCHED.TYPE SCHED.WARMUP_STEPS",
    "LOSS": "CHARBONNIER.DELTA CHARBONNIER.WEIGHT VGG_PERCEPTUAL.LAYERS VGG_PERCEPTUAL.WEIGHT",
    "LOG": "TENSORBOARD SAVE_DIR VAL_EVERY_STEPS ENABLE_TIMING_LOG TIMING_CONSOLE TIMING_FILE "
    "TIMING_CONSOLE_INTERVAL TIMING_FILE_INTERVAL",
    "TEST": "BATCH_SIZE NUM_WORKERS",
}
FLAGS = {
    "### src/train.py": "--config --device --resume --local_rank --profile --profile_steps",
    "### src/test.py": "--config --device --input_blur --input_spike_vox --output --tile_size "
    "--tile_overlap --enable_tiling --disable_tiling",
    "### scripts/": "--data-root --fps --exposure-frames --K --split --out-npy --voxel-dirname "
    "--overwrite --dry-run --align-log --config --spike_root --blur_root --output --use_symlinks "
    "--data_root --val_ratio --seed --force --log --auto --baseline --optimized --compare "
    "--iterations --checkpoint --best",
}


def _first_column(text: str) -> str:
    return "\n".join(line.split(" | ")[0] for line in text.splitlines() if line.startswith("| "))


def _section(heading: str) -> str:
    text = GUIDE.read_text(encoding="utf-8").split(heading + "\n")[1]
    return re.split(r"^##", text, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("section", YAML_KEYS, ids=lambda s: s or "top level")
def test_every_key_of_the_yaml_has_a_line(section):
    column = _first_column(GUIDE.read_text(encoding="utf-8"))
    for key in YAML_KEYS[section].split():
        name = f"{section}.{key}" if section else key
        assert column.count(f"`{name}`") >= 1, f"{name} is not in the guide"


@pytest.mark.parametrize("heading", FLAGS)
def test_every_flag_has_a_line(heading):
    column = _first_column(_section(heading))
    missing = [f for f in FLAGS[heading].split() if not re.search(rf"{f}[`,]", column)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_config_field_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w./])config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)", text))
    for name in names - {"json", "yaml"}:
        node = baseline.get_config()
        for part in name.split("."):
            assert isinstance(node, ml_collections.ConfigDict) and part in node, f"config.{name}"
            node = node[part]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_and_option_that_is_named_exists(page):
    group = typer.main.get_command(app)
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, rest in re.findall(r"(?<!import )\bvrtspike ([a-z]+)([^`\n]*)", text):
        command = group.commands.get(name)
        assert command is not None, f"vrtspike {name}"
        known = {opt for parameter in command.params for opt in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest)) <= known, f"vrtspike {name}{rest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_that_is_linked_or_named_exists(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
    links += re.findall(r'<img src="(?!https?:)([^"]+)"', text)
    missing = [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(r"`((?:configs|vrtspike_jax|scripts)/[\w/.]*)`", text)
    ours = [p for p in paths if not p.startswith("configs/deblur") and p != "scripts/README.md"]
    assert not missing + [p for p in ours if not (ROOT / p).exists()]


def test_every_heading_that_is_linked_exists():
    text = GUIDE.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
