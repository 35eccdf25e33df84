import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rism.runtime
from rism.runtime.distribution import DISTRIBUTION
from tests.paths import ROOT

HALVES = ("runtime", "export", "calibration", "evaluation", "serve", "batch")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed(pyproject: dict[str, Any]) -> None:
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("rism/**/__init__.py")
    }
    for half in HALVES:
        for file in (ROOT / half).rglob("__init__.py"):
            folders.add(".".join(("rism", *file.parent.relative_to(ROOT).parts)))
    assert set(pyproject["tool"]["setuptools"]["packages"]) == folders


def test_no_module_lies_outside_a_package() -> None:
    for half in ("rism", *HALVES):
        for file in (ROOT / half).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


def test_types_and_bundles_travel(pyproject: dict[str, Any]) -> None:
    data = pyproject["tool"]["setuptools"]["package-data"]
    assert data["rism"] == ["py.typed"]
    assert (ROOT / "rism/py.typed").is_file()
    assert {"builtin/mini/*", "method/kernels/*.cu"} <= set(data["rism.runtime"])


def test_public_names() -> None:
    for package in (rism, rism.runtime):
        for name in package.__all__:
            assert getattr(package, name) is not None
        assert dir(package) == sorted(package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rism.nothing


def test_the_base_installation_has_no_engine_and_no_torch(pyproject: dict[str, Any]) -> None:
    names = {Requirement(line).name for line in pyproject["project"]["dependencies"]}
    assert names == {"numpy", "tokenizers", "pillow", "click"}


def test_constraints_pin_what_the_tests_install(pyproject: dict[str, Any]) -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert "+" not in version, f"{line}: a local build is nobody else's"
            pins[canonicalize_name(name)] = version
    extras = pyproject["project"]["optional-dependencies"]
    tested = ("cpu", "export", "build", "calibrate", "triton", "eval", "docs", "serve", "batch")
    tested = (*tested, "dev")
    lines = [*pyproject["project"]["dependencies"], *(x for name in tested for x in extras[name])]
    for requirement in map(Requirement, lines):
        if requirement.name != DISTRIBUTION:
            version = pins.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(version), f"{requirement} against {version}"
