"""``detinfer bench``: a script of ``benchmarks/``, which a checkout has and the package has not."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from detinfer.errors import ConfigError


def run(name: str, options: list[str]) -> int:
    """Run ``benchmarks.NAME`` with its own options.

    Raises:
        ConfigError: neither this package nor the current folder is in a checkout.
    """
    roots = (Path(__file__).parents[2], Path.cwd())
    root = next((one for one in roots if (one / "benchmarks" / "common.py").is_file()), None)
    if root is None:
        raise ConfigError(
            f"bench: found no benchmarks/ in {roots[0]} or {roots[1]}, expected a checkout of "
            "the source"
        )
    sys.path.append(str(root))
    sys.argv = [f"detinfer bench {name}", *options]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return 0
