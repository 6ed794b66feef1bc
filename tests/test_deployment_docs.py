"""docs/deployment.md: its unit and its manifest name flags, routes and folders that there are."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from detinfer.cli import _parser
from detinfer.server.http.auth import PUBLIC_PATHS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/deployment.md").read_text()


def block(language: str) -> str:
    [code] = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return str(code)


@pytest.fixture(scope="module")
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))
    return unit["Service"]


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    return dict(yaml.safe_load(block("yaml"))["spec"]["template"]["spec"])


def test_the_commands_are_understood(service, pod) -> None:
    program, *unit = shlex.split(service["ExecStart"])
    assert program.endswith("/.venv/bin/detinfer")
    for command in (unit, pod["containers"][0]["args"]):
        parsed = _parser().parse_args(command)
        assert parsed.port == 8000


def test_there_is_time_to_shut_down(service, pod) -> None:
    default = _parser().parse_args(["serve"]).shutdown_timeout
    assert int(service["TimeoutStopSec"]) > default
    assert pod["terminationGracePeriodSeconds"] > default
    assert service["SuccessExitStatus"] == "143"


def test_probes_ask_what_needs_no_key(pod) -> None:
    [container] = pod["containers"]
    probes = [value for name, value in container.items() if name.endswith("Probe")]
    assert len(probes) == 3
    assert {probe["httpGet"]["path"] for probe in probes} <= PUBLIC_PATHS


def test_the_cache_is_where_the_image_has_it(pod) -> None:
    image = (ROOT / "Dockerfile").read_text()
    [folder] = re.findall(r"DETINFER_CACHE=(\S+)", image)
    assert folder in [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    assert f"USER {pod['securityContext']['runAsUser']}:" in image


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_reads_the_unit(tmp_path) -> None:
    # Of this machine's own: no such program in /opt.
    unit = block("ini").replace("/opt/detinfer/.venv/bin/detinfer", "/bin/true")
    path = tmp_path / "detinfer.service"
    path.write_text(unit)
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert "detinfer.service" not in done.stderr
    assert done.returncode == 0, done.stderr
    # The control: a directive that does not exist is found.
    path.write_text(unit.replace("Restart=on-failure", "Restart=on-tuesdays"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert "detinfer.service" in done.stderr
