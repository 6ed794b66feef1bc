"""What is installed is what was run: ranges with both ends, and a constraint for each package."""

from __future__ import annotations

import re
import tomllib
import warnings

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from releases import CHECKOUT, chosen, pinned

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
GROUPS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
DIRECT = [
    requirement
    for requirement in map(Requirement, (text for group in GROUPS for text in group))
    if requirement.name != PROJECT["name"]
]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_a_range_has_both_ends_and_holds_the_release_of_constraints_txt(
    requirement: Requirement,
) -> None:
    assert {specifier.operator for specifier in requirement.specifier} == {">=", "<"}
    assert requirement.specifier.contains(pinned()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "Dockerfile", ".ci/run"])
def test_every_install_of_the_project_is_constrained(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    installs = re.findall(r"pip install (?!--no-deps)[^&\n`]*(?: \.|'\.\[|-r )[^&\n`]*", text)
    assert all("-c constraints.txt" in install for install in installs)
    assert installs


def test_the_pages_files_are_packaged() -> None:
    setuptools = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["*"]
    for path in (CHECKOUT / "server" / "page").iterdir():
        assert any(path.match(pattern) for pattern in patterns), path.name


def test_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) < 200


def test_the_oldest_releases_are_the_lower_ends() -> None:
    assert "transformers==5.17" in list(chosen("oldest", []))
    assert "torch==2.13.0" in list(chosen("oldest", ["torch"]))
    assert list(chosen("newest", [])) == []


def test_a_warning_is_an_error_where_it_is_ours() -> None:
    def warn(module: str) -> None:
        warnings.warn_explicit("deprecated", FutureWarning, "file.py", 1, module=module)

    for module in ("detinfer.engine.engine", __name__, "torch.nn.modules.module"):
        with pytest.raises(FutureWarning):
            warn(module)
    with pytest.warns(FutureWarning):
        warn("transformers.models.llama.modeling_llama")
