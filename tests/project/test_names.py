"""One name, one thing: classes and modules of the packages, and the benchmarks."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
HALVES = ("runtime", "export", "calibration", "evaluation", "serve", "batch")
LAYERS = (*HALVES, "rism", "benchmarks", "mini")
# One module of each in every model family, and the declarations that all of them share.
FAMILIES = ROOT / "export/families"
# The main programs, and docstrings of packages.
MAINS = ("__init__", "__main__")


def test_no_two_public_classes_have_one_name() -> None:
    homes = defaultdict(list)
    for layer in LAYERS:
        for file in sorted((ROOT / layer).rglob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    homes[node.name].append(file.relative_to(ROOT).as_posix())
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_no_two_modules_of_a_layer_have_one_name() -> None:
    for layer in LAYERS:
        homes = defaultdict(list)
        for file in sorted((ROOT / layer).rglob("*.py")):
            if file.stem not in MAINS and FAMILIES not in file.parents:
                homes[file.stem].append(file.relative_to(ROOT).as_posix())
        assert {name: files for name, files in homes.items() if len(files) > 1} == {}
