"""The parts that the replay stands on: Dockerfile language, .dockerignore, COPY."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_context import Ignore, copy_from_context
from dockerfile import Copy, DockerfileError, Run, build

HEAD = "FROM debian:bookworm-slim\n"


def test_variables_and_places_follow_dockers_rules():
    text = (
        "ARG BASE=debian:bookworm-slim\nFROM ${BASE}\nARG NAME=default\nARG OTHER=arg\n"
        "ENV OTHER=env \\\n# why\n    PATH=/venv/bin:$PATH\nENV NAMED=$NAME\nWORKDIR /a\n"
        'RUN echo "$NAME" \\\n  && second\nWORKDIR b\nUSER 5:6\nENV OTHER=later\nRUN two\n'
    )
    image = build(text, {"NAME": "given"})
    first, second = image.steps
    assert image.base == "debian:bookworm-slim"
    assert isinstance(first, Run)
    assert (first.line, first.command) == (10, 'echo "$NAME"   && second')
    assert first.environment.pop("PATH").startswith("/venv/bin:/usr/local/sbin:")
    assert first.environment == {"NAME": "given", "OTHER": "env", "NAMED": "given"}
    assert image.environment.keys() == {"PATH", "OTHER", "NAMED"}
    assert isinstance(second, Run)
    assert [(run.workdir, run.user) for run in (first, second)] == [("/a", "0:0"), ("/a/b", "5:6")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ADD a b", "not supported"),
        ("RUN --mount=type=cache,target=/x true", "flags"),
        ('RUN ["true"]', "not supported"),
        ("RUN <<END", "heredoc"),
        ("# escape=`", "directive"),
        ("RUN a \\", "backslash"),
        ("COPY a", "SOURCE"),
        ("FROM debian:bookworm-slim", "not supported"),
        ("ENV A=$NOBODY", "no variable"),
        ("ENV A=${NAME:-x}", "placeholder"),
        ("ENV A='$PATH'", "quoted"),
        ("ENV A", "NAME=VALUE"),
        ("WORKDIR a b", "one word"),
        ("USER somebody", "UID:GID"),
        ("CMD true", "JSON"),
        ("HEALTHCHECK CMD true", "--interval"),
    ],
)
def test_what_ours_does_not_use_is_refused_by_its_line(line, message):
    with pytest.raises(DockerfileError, match=f"line 2: .*{message}"):
        build(HEAD + line, {})


def test_instructions_before_from_and_undeclared_build_arguments_are_refused():
    with pytest.raises(DockerfileError, match="expected FROM first"):
        build("RUN true", {})
    with pytest.raises(DockerfileError, match="NAME is not declared"):
        build(HEAD, {"NAME": "x"})


def test_the_last_matching_pattern_decides_and_covers_what_a_folder_holds():
    ignore = Ignore("# comment\n*\n!kept\n!one.py\n**/__pycache__\n")
    left = ["other", "other/kept", "kept/__pycache__/a.pyc", "kept/deep/__pycache__"]
    assert [path for path in left if not ignore(path)] == []
    assert [path for path in ("kept", "kept/deep/a.py", "one.py") if ignore(path)] == []
    with pytest.raises(DockerfileError, match="pattern"):
        Ignore("a/**/b")


def copy(context: Path, line: str) -> Path:
    [step] = build(f"{HEAD}COPY {line}", {}).steps
    assert isinstance(step, Copy)
    copy_from_context(context, Ignore("secret\n**/left"), step, context / "root")
    return context / "root"


@pytest.fixture
def context(tmp_path) -> Path:
    for name in ("secret", "package/module.py", "package/deep/left"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "package/link").symlink_to("../beside")
    return tmp_path


def test_copy_leaves_out_what_is_ignored_and_keeps_symlinks_inside_a_folder(context):
    target = copy(context, "package target") / "target"
    assert sorted(path.name for path in target.rglob("*")) == ["deep", "link", "module.py"]
    assert (target / "link").readlink() == Path("../beside")


def test_copy_puts_files_under_their_names_or_under_the_one_given(context):
    assert (copy(context, "package/module.py new.py") / "new.py").is_file()
    assert (copy(context, "package/module.py folder/") / "folder/module.py").is_file()


@pytest.mark.parametrize("source", ["missing", "secret", "package/link"])
def test_copy_refuses_what_docker_would_not_find_or_would_follow(context, source):
    with pytest.raises(DockerfileError, match=f"line 2: {source}"):
        copy(context, f"{source} target")
