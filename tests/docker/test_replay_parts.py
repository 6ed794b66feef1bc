"""The parts that the replay stands on: Dockerfile language, .dockerignore, COPY, host settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_context import Ignore, copy_from_context
from dockerfile import Build, Copy, DockerfileError, Instruction, Run, parse
from host_packages import local_folders, parse_pip_settings

HEAD = "FROM debian:bookworm-slim\n"


def build(text: str, **build_args: str) -> Build:
    return Build(parse(text), build_args)


def test_continued_lines_are_one_instruction_and_comments_between_them_are_dropped():
    [_, run] = parse(HEAD + "\nRUN first \\\n# why\n    && second\n")
    assert run == Instruction("RUN", {}, "first     && second", 3)


def test_variables_follow_dockers_rules():
    text = (
        "ARG BASE=debian:bookworm-slim\nFROM ${BASE}\n"
        "ARG NAME=default\nARG OTHER=arg\nENV OTHER=env PATH=/venv/bin:$PATH\n"
        'RUN echo "$NAME"\nUSER ${OTHER}\nENV NAME=later\n'
    )
    built = build(text, NAME="given")
    [run] = built.steps
    assert built.image.base == "debian:bookworm-slim"
    assert built.image.user == "env"
    assert run.command == ("/bin/sh", "-c", 'echo "$NAME"')
    assert run.environment["NAME"] == "given"
    assert run.environment["OTHER"] == "env"
    assert run.environment["PATH"].startswith("/venv/bin:/usr/local/sbin:")
    assert "BASE" not in run.environment
    assert "BASE" not in built.image.environment


def test_a_run_keeps_the_user_and_folder_of_its_place():
    text = HEAD + "WORKDIR /a\nRUN one\nWORKDIR b\nUSER 5\nRUN two\n"
    runs = [step for step in build(text).steps if isinstance(step, Run)]
    assert [(step.workdir, step.user) for step in runs] == [("/a", "0"), ("/a/b", "5")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ADD a b", "got ADD"),
        ("VOLUME /x", "got VOLUME"),
        ("RUN --mount=type=cache,target=/x true", "--mount"),
        ("COPY --chown=1:1 a b", "--chown"),
        ("COPY a* b/", "SOURCE"),
        ("COPY a", "SOURCE"),
        ("RUN <<END", "heredoc"),
        ("FROM debian:bookworm-slim", "second stage"),
        ("USER $NOBODY", "no variable"),
        ("USER ${NAME:-x}", "no variable"),
        ("ENV A='$PATH'", "quoted"),
        ("ENV A", "NAME=VALUE"),
        ("USER a b", "one word"),
        ('CMD ["a",]', "JSON"),
        ("HEALTHCHECK CMD true", "interval"),
        ("HEALTHCHECK --interval=1h --timeout=1s --start-period=1s --retries=1 CMD true", "10s"),
        ("RUN a \\", "backslash"),
        ("# escape=`", "directive"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_line(text, message):
    with pytest.raises(DockerfileError, match=f"line 2: .*{message}"):
        build(HEAD + text)


def test_instructions_before_from_and_undeclared_build_arguments_are_refused():
    with pytest.raises(DockerfileError, match="expected FROM first"):
        build("RUN true")
    with pytest.raises(DockerfileError, match="NAME is not declared"):
        build(HEAD, NAME="x")


def test_the_last_matching_pattern_decides_and_covers_what_a_folder_holds():
    ignore = Ignore("# comment\n*\n!kept\n!one.py\n**/__pycache__\n")
    left = ["other", "other/kept", "kept/__pycache__/a.pyc", "kept/deep/__pycache__"]
    assert [path for path in left if not ignore(path)] == []
    assert [path for path in ("kept", "kept/deep/a.py", "one.py") if ignore(path)] == []


@pytest.mark.parametrize("pattern", ["a/**/b", "[ab]", "a?"])
def test_patterns_that_are_not_understood_are_refused(pattern):
    with pytest.raises(DockerfileError, match="pattern"):
        Ignore(pattern)


@pytest.fixture
def context(tmp_path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/module.py").write_text("1")
    (tmp_path / "package/link").symlink_to("../beside")
    (tmp_path / "beside").mkdir()
    return tmp_path


def copy(context: Path, line: str) -> Path:
    [step] = build(f"{HEAD}COPY {line}").steps
    assert isinstance(step, Copy)
    copy_from_context(context, Ignore("secret"), step, context / "root")
    return context / "root"


def test_copy_keeps_symlinks_inside_a_folder(context):
    root = copy(context, "package target")
    assert (root / "target/link").readlink() == Path("../beside")
    assert (root / "target/module.py").read_text() == "1"


def test_copy_puts_files_under_their_names_or_under_the_one_given(context):
    assert (copy(context, "package/module.py new.py") / "new.py").is_file()
    assert (copy(context, "package/module.py folder/") / "folder/module.py").is_file()


@pytest.mark.parametrize("source", ["missing", "secret", "package/link"])
def test_copy_refuses_what_docker_would_not_find_or_would_follow(context, source):
    (context / "secret").write_text("x")
    with pytest.raises(DockerfileError, match=f"line 2: {source}"):
        copy(context, f"{source} target")


def test_pip_settings_are_merged_by_strength_and_nothing_else_is_taken_over():
    listing = (
        ":env:.find-links='/env/links'\n"
        "global.find-links='/global/links'\n"
        "global.extra-index-url='\\nfile:///a/simple\\nhttps://example.org/simple'\n"
        "global.require-virtualenv='true'\n"
        "download.index-url='https://example.org/other'\n"
    )
    assert parse_pip_settings(listing) == {
        "find-links": "/env/links",
        "extra-index-url": "file:///a/simple https://example.org/simple",
    }


def test_local_folders_are_found_and_an_index_brings_the_files_beside_it(tmp_path):
    for name in ("links", "index/simple"):
        (tmp_path / name).mkdir(parents=True)
    indexes = f"{(tmp_path / 'index/simple').as_uri()} https://example.org/simple"
    links = f"{tmp_path}/links relative {tmp_path}/missing"
    assert local_folders(links, indexes) == [tmp_path / "index", tmp_path / "links"]
