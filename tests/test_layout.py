"""Test the layout of the package: imports go one way only, and the public names stay where users expect them."""

import ast
import inspect
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

import scott_models

PACKAGE = Path(scott_models.__file__).parent
CHECKOUT = Path(__file__).parents[1]
# A folder may import from itself and from floors further down the list, but not from others on its own floor.
FLOORS = [
    {"cli"},
    {"report"},
    {"bench", "release", "finetune"},
    {"pretrain"},
    {"pictures"},
    {"probes"},
    {"training"},
    {"models"},
    {"weights", "data"},
    {"progress", "writing"},
    {"errors"},
    {"signals"},
    {"console"},
]
MODULES = {"progress", "writing", "errors", "console", "signals"}  # files beside the folders
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FACE = {"__init__", "run", "timm_script"}  # modules of the package itself: they import what they provide or start


def imported(path):
    """Yield the names directly below the package that a file imports from, by absolute or relative imports."""
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [base] if len(base) > 1 else [[*base, alias.name] for alias in node.names]
        else:
            continue
        yield from (target[1] for target in targets if target[0] == "scott_models" and len(target) > 1)


def test_imports_go_one_way():
    upward, seen = [], set()
    for path in PACKAGE.rglob("*.py"):
        first = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if first in FACE:
            continue
        for name in set(imported(path)) - {first, "__version__"}:
            seen.add((first, name))
            if FLOOR[name] <= FLOOR[first]:
                upward.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not upward
    assert {("pretrain", "training"), ("models", "weights"), ("cli", "report")} <= seen  # the search finds imports


def test_every_folder_has_a_floor_and_says_what_lives_there():
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    assert {folder.name for folder in folders} | MODULES == FLOOR.keys()
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_training_names_no_method():
    from scott_models.pretrain.recipe import OBJECTIVES

    for path in (PACKAGE / "training").glob("*.py"):
        words = path.read_text().lower()
        assert not [name for name in OBJECTIVES if name in words], path


def test_model_files_show_the_plain_path():
    """Check that only fast_cpu.py asks how a model is run."""
    asking = ("is_scripting", "is_exporting", "is_tracing", "is_symbolic", "is_compiling", "piecewise", "jit.unused")
    for path in (PACKAGE / "models").glob("*.py"):
        found = [word for word in asking if word in path.read_text()]
        assert not found or path.stem == "fast_cpu", f"{path}: {found}"


def find_calls(*folders):
    """Yield the path, the called name (of a method without its object) and the call, of all calls in Python files."""
    for path in chain.from_iterable(folder.rglob("*.py") for folder in folders):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                yield path, getattr(node.func, "attr", None) or getattr(node.func, "id", None), node


def test_text_is_utf_8_whatever_the_locale():
    """Check that whatever reads or writes text names its encoding. Without a mode, `open` reads text."""
    of_others = {"Image", "os", "tarfile"}  # they open no text
    found = []
    for path, name, call in find_calls(PACKAGE, CHECKOUT / "examples", CHECKOUT / "benchmarks"):
        if name == "open":
            if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", None) in of_others:
                continue
            modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
            text = not any("b" in str(mode) for mode in modes) and (modes or isinstance(call.func, ast.Name))
        else:
            text = name in ("read_text", "write_text") and not ast.unparse(call).startswith("installed.")
        if text and not any(word.arg == "encoding" for word in call.keywords):
            found.append(f"{path.relative_to(CHECKOUT)}:{call.lineno}: {ast.unparse(call)[:60]}")
    assert not found


def test_json_and_notes_are_made_in_one_place():
    """Check that no JSON with NaN is written, and that no note fails where standard error is absent or lost."""
    found = []
    for path, name, call in find_calls(PACKAGE):
        if (name in ("dump", "dumps") and path.name not in ("writing.py", "settings.py")) or (
            name == "print" and path.name != "console.py" and not ast.unparse(call).startswith("console.print")
        ):
            found.append(f"{path.relative_to(CHECKOUT)}:{call.lineno}: {ast.unparse(call)[:60]}")
    assert not found


@pytest.mark.parametrize(
    "names",
    [
        "SCOTT Recipe embed load_model pretrain probe weights",
        "models.SCOTT models.SparseConvTokenizer models.MaxBlurPool models.AttentivePool",
        "weights.resolve weights.load weights.convert_reference weights.convert_reference_predictor weights.export",
        "weights.manifest pretrain.Predictor pretrain.MIMJEPA pretrain.masks pretrain.schedules pretrain.Recipe",
        "pretrain.pretrain",
    ],
)
def test_public_names(names):
    for name in names.split():
        owner = scott_models
        for part in name.split("."):
            owner = getattr(owner, part)
        assert owner is not None


def test_pretrain_is_a_package_and_its_function():
    assert inspect.signature(scott_models.pretrain.pretrain).parameters.keys() >= {"recipe", "data", "out"}
    with pytest.raises(TypeError, match="recipe"):
        scott_models.pretrain()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        scott_models.nothing  # noqa: B018


def test_importing_loads_what_registering_needs_and_no_more():
    code = "import sys, scott_models; print(*(name for name in sys.modules if name.startswith('scott_models.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[1] for name in loaded} == {"models", "weights", "writing", "errors", "console", "signals"}
