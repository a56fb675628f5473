"""Which of the known folder layouts a data set has."""

import re
from pathlib import Path


def guess_layout(root: Path, split: str = "*") -> str:
    """ "gopro", "x4k" or "plain", by the folders in `root`."""
    if (root / "GOPRO_Large").is_dir():
        return "gopro"
    return "x4k" if any(root.glob(f"{split}_blurry_*")) else "plain"


def list_splits(root: Path, layout: str) -> list[str]:
    """Names of the splits in a data set's folder, sorted; [] if there are none."""
    if layout == "x4k":
        names = (re.fullmatch(r"(.+)_blurry_\d+", path.name) for path in root.iterdir())
        return sorted({match[1] for match in names if match})
    top = root / "GOPRO_Large" if layout == "gopro" else root
    folders = [path for path in top.iterdir() if path.is_dir() and path.name[0] != "."]
    parts = ("blur", "sharp", "spike")
    found = {f.name for f in folders if any(next(f.glob(f"**/{p}"), None) for p in parts)}
    if layout == "gopro":
        blurred = "_GT_blurred"
        found |= {f.name.removesuffix(blurred) for f in folders if f.name.endswith(blurred)}
    return sorted(found)
