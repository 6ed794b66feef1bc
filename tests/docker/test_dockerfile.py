"""The Dockerfile says what the package needs; replay.py, run by hand, shows that it also works."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_context import Ignore, copy_from_context
from dockerfile import Copy, Image, Run, build

import detinfer
from detinfer.config import ServerConfig

CHECKOUT = Path(__file__).parents[2]
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
IGNORE = Ignore((CHECKOUT / ".dockerignore").read_text())
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def image() -> Image:
    return build(DOCKERFILE, {})


@pytest.fixture
def sources(image, tmp_path) -> Path:
    """What the image's COPY lines see of this checkout."""
    for step in image.steps:
        if isinstance(step, Copy):
            copy_from_context(CHECKOUT, IGNORE, step, tmp_path)
    return tmp_path / "src"


@pytest.fixture(params=[200, 503])
def answering(request) -> Iterator[tuple[int, int]]:
    """A server that answers everything with one status: its port and that status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port, request.param
        server.shutdown()
        thread.join()


def run_with(image: Image, word: str) -> Run:
    """The one RUN that has ``word`` in it."""
    runs = [step for step in image.steps if isinstance(step, Run)]
    [found] = [step for step in runs if word in step.command]
    return found


def shell(line: str, **options: object) -> list[str]:
    """The lines that a shell command prints."""
    return subprocess.check_output(["sh", "-c", line], text=True, **options).splitlines()


def torch_arguments(image: Image, index: str) -> list[str]:
    """What pip gets to see of the line that installs PyTorch."""
    line = run_with(image, "TORCH_INDEX").command.replace("pip install", "printf '%s\\n'")
    return shell(line, cwd=CHECKOUT, env={"TORCH_INDEX_URL": index, "PATH": os.environ["PATH"]})


def test_torch_is_the_release_of_constraints_txt(image):
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    assert torch_arguments(image, "") == [line for line in lines if line.startswith("torch==")]


def test_torch_comes_from_the_index_that_the_build_argument_names(image):
    index = "https://example.org/whl/cu130"
    assert torch_arguments(image, index)[:-1] == ["--index-url", index]
    default = run_with(image, "TORCH_INDEX").environment["TORCH_INDEX_URL"]
    assert default == "https://download.pytorch.org/whl/cpu"


def test_server_runs_as_a_user_that_owns_the_cache_and_is_not_root(image):
    uid, gid = map(int, image.user.split(":"))
    assert uid > 0
    assert gid > 0
    accounts = run_with(image, "useradd").command
    assert f"useradd --uid {uid} --gid {gid} " in accounts
    cache = image.environment["DETINFER_CACHE"]
    assert f"--owner=detinfer --group=detinfer {cache}" in accounts


def test_everything_is_installed_before_the_user_changes(image):
    assert {step.user for step in image.steps if isinstance(step, Run)} == {"0:0"}


def test_openmp_and_certificates_are_installed(image):
    assert {"libgomp1", "ca-certificates", "python3", "python3-venv"} <= set(
        run_with(image, "apt-get install").command.split()
    )


def test_server_listens_where_the_image_says(image):
    assert image.entrypoint == ("detinfer",)
    assert image.command == ("serve", "--host", "0.0.0.0")
    assert image.ports == [ServerConfig().port]


def test_healthcheck_tells_a_ready_server_from_a_loading_one(image, answering):
    port, status = answering
    check = image.healthcheck
    _, flag, program = check.command
    assert f", {image.ports[0]}," in program
    program = program.replace(f", {image.ports[0]},", f", {port},")
    done = subprocess.run([sys.executable, flag, program], timeout=30, check=False)
    assert (done.returncode == 0) == (status == 200)


def test_healthcheck_waits_for_a_first_start(image):
    assert image.healthcheck.start_period >= 180  # fetch the model, compile the kernels


def test_labels_agree_with_the_project(image):
    labels = {key.rpartition(".")[2]: value for key, value in image.labels.items()}
    assert labels["version"] == PROJECT["version"] == detinfer.__version__
    assert labels["licenses"] == PROJECT["license"]


def test_an_edited_source_leaves_the_dependencies_in_docker_s_cache(image):
    dependencies = image.steps.index(run_with(image, "tomllib"))
    before = [step for step in image.steps[:dependencies] if isinstance(step, Copy)]
    assert [step.sources for step in before] == [("constraints.txt",), ("pyproject.toml",)]


def test_dependencies_installed_first_are_those_of_pyproject(image, sources):
    listing, _, install = run_with(image, "tomllib").command.partition("&&")
    # Said before anything runs: a test never reaches a real pip.
    assert install.strip() == "pip install -c constraints.txt -r requirements.txt"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    listed = shell(f"{listing} && cat requirements.txt", cwd=sources, env={"PATH": path})
    assert listed == PROJECT["dependencies"]


def test_wheel_holds_every_file_of_the_package_kernels_and_server_too(sources, tmp_path):
    package = {
        os.path.relpath(os.path.join(folder, name), sources)
        for folder, _, names in os.walk(sources / "detinfer", followlinks=True)
        for name in names
    }
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, tmp_path], cwd=sources, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        built = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"detinfer/kernels/cpu/matmul.py", "detinfer/server/app.py"} <= built
    assert built == package
