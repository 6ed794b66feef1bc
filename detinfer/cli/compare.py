"""``detinfer check --compare A.json B.json``."""

from __future__ import annotations

from detinfer.check.compare import Comparison


def compare(one: str, other: str) -> int:
    """Print what differs between two reports.

    Returns:
        0 if every prompt has the same answer in both; 1 if not.

    Raises:
        ConfigError: one is no report, or they are of other prompts.
    """
    comparison = Comparison(one, other)
    for line in comparison.lines():
        print(line)
    return 0 if comparison.equal else 1
