"""An extra brings what its part of rism imports: shown with everything else out of reach."""

import os
import subprocess
import sys

import pytest

from rism.runtime.distribution import DISTRIBUTION
from tests.paths import ROOT

# What an extra installs, with all that this needs, is what can be imported.
CHILD = """
import importlib, pkgutil, sys, tomllib
from importlib import metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

extra, packages = sys.argv[1], sys.argv[3:]
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
waiting = [*project["dependencies"], *project["optional-dependencies"][extra]]
brought = set()
while waiting:
    wanted = Requirement(waiting.pop())
    name = canonicalize_name(wanted.name)
    here = wanted.marker is None or any(
        wanted.marker.evaluate({"extra": one}) for one in ("", *wanted.extras)
    )
    if name not in brought and here:
        brought.add(name)
        waiting += [line for line in metadata.requires(name) or () if "extra ==" not in line]

class Blocked:
    owners = metadata.packages_distributions()

    def find_spec(self, name, path=None, target=None):
        owners = {canonicalize_name(each) for each in self.owners.get(name.partition(".")[0], ())}
        if owners and not owners & {*brought, sys.argv[2]}:
            raise ModuleNotFoundError(f"{name} does not come with the extra", name=name)

sys.meta_path.insert(0, Blocked())
try:
    import torch
except ModuleNotFoundError:
    print("blocked")
for package in packages:
    module = importlib.import_module(package)
    print(package)
    for each in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{package}."):
        importlib.import_module(each.name)
        print(each.name)
"""


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("build", ["rism.export.engines", "rism.cli.commands.build"]),
        ("calibrate", ["rism.calibration", "rism.cli.commands.calibrate"]),
        ("triton", ["rism.export.triton", "rism.cli.commands.export_triton"]),
    ],
)
def test_an_extra_brings_what_it_imports(extra: str, packages: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CHILD, extra, DISTRIBUTION, *packages],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "blocked"
    assert {*packages} < {*lines}
