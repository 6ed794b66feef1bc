"""The part of the native fingerprint that follows kernels and launch tables, and no comment."""

import shutil

import pytest

from detinfer.runner.kernel_sources import FILES, code_of, kernel_sources


@pytest.fixture
def copies(tmp_path):
    return {path.name: tmp_path / shutil.copy(path, tmp_path) for path in FILES}


def changed(copies, name, old, new):
    """The digest after one change to a copy."""
    source = copies[name].read_text()
    assert source.count(old) == 1, old
    copies[name].write_text(source.replace(old, new))
    return kernel_sources(list(copies.values()))


def test_where_the_files_lie_changes_nothing(copies):
    assert kernel_sources(list(copies.values())) == kernel_sources()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("embedding.py", "# columns of a program", "# a program's columns"),
        ("embedding.py", "BLOCK = 1024", "\n\n# Words.\nBLOCK = 1024"),
        ("embedding.py", '"""Rows of an embedding table."""', '"""A table\'s\n\nrows."""'),
        ("embedding.py", '    """Rows ``ids`` of ``table``, bits', '    """Words ``ids``, bits'),
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_move_it(copies, name, old, new):
    assert changed(copies, name, old, new) == kernel_sources()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("embedding.py", "BLOCK = 1024", "BLOCK = 512"),
        (
            "attention_kernels.py",
            "MERGE_STAGES = tl.constexpr(4)",
            "MERGE_STAGES = tl.constexpr(2)",
        ),
        (
            "attention_table.py",
            "_WGMMA_DECODE = _C(64, 4, 3, 2)",
            "_WGMMA_DECODE = _C(64, 4, 3, 1)",
        ),
        ("matmul_table.py", "_TINY = 1536", "_TINY = 1537"),
        ("constants.py", "PAGE_SIZE = 64", "PAGE_SIZE = 32"),
    ],
)
def test_kernels_launch_tables_and_constants_move_it(copies, name, old, new):
    assert changed(copies, name, old, new) != kernel_sources()


def test_what_looks_like_a_comment_in_a_string_is_code():
    assert code_of('x = "# a"  # b\n') == 'x = "# a"'
    assert code_of('"""Doc."""\n\n\ndef f():\n    """Doc."""\n    "text"  # c\n') == (
        'def f():\n    "text"'
    )


def test_no_case_of_the_audit_is_hashed():
    assert not [path for path in FILES if "def cases(" in path.read_text()]
