import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SAFE_YAML = {"SafeLoader", "CSafeLoader", "_Loader"}


def dangers(source: str) -> list[tuple[int, str]]:
    """(line, what) of each call that runs, or may run, code out of what it reads."""
    return [
        (node.lineno, what)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and (what := danger(node))
    ] + [
        (node.lineno, f"from {node.module} import ...")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS
    ]


def danger(call: ast.Call) -> str:
    name = ast.unparse(call.func)
    owner, _, function = name.rpartition(".")
    keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if owner in UNPICKLERS and function in ("load", "loads", "open", "Unpickler"):
        return name
    if keywords.get("allow_pickle", "False") != "False":
        return f"{name} with allow_pickle"
    if name in ("np.load", "numpy.load") and "allow_pickle" not in keywords:
        return f"{name} without allow_pickle=False"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        return f"{name} without weights_only=True"
    if owner == "yaml" and function in ("unsafe_load", "full_load", "load_all", "load"):
        loader = keywords.get("Loader") or (ast.unparse(call.args[1]) if call.args[1:] else "")
        return "" if loader.rpartition(".")[2] in SAFE_YAML else f"{name} with {loader or 'any'}"
    return name if name in ("eval", "exec") else ""


def test_no_file_is_read_in_a_way_that_can_run_its_code():
    paths = [
        path
        for folder in ("vrtspike_jax", "scripts", "configs", "data")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(paths) > 80
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in paths
        for line, what in dangers(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "bad",
    [
        "pickle.loads(data)",
        "from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "np.load(str(path))",
        "torch.load(path, map_location='cpu')",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "x = eval(text)",
    ],
)
def test_what_can_run_code_is_recognised(bad):
    assert dangers(bad)


@pytest.mark.parametrize(
    "good",
    [
        "np.load(str(path), allow_pickle=False)",
        "torch.load(path, map_location='cpu', weights_only=True)",
        "yaml.load(path.read_text(encoding='utf-8'), _Loader)",
        "spec.loader.exec_module(module)",
        "ast.literal_eval(text)",
    ],
)
def test_what_cannot_is_let_through(good):
    assert not dangers(good)
