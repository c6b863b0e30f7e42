"""What glibc does with large arrays that are freed, which decides how long the next one takes."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

# Read when a process starts. By default freed memory goes back to the system, and the next array
# waits for fresh pages of 4 KiB, or of 2 MiB with huge pages. Where it is kept, nothing waits, and
# no side depends on what another one freed.
SETTINGS: dict[str, dict[str, str]] = {
    "kept": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
    },
    "default": {},
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}


def in_each(module: str, quick: bool, rounds: int, settings: tuple[str, ...]) -> list[Any]:
    """The rows that a module's `measure(quick, rounds)` returns, in a process for each setting."""
    ours = {name for values in SETTINGS.values() for name in values}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    rows: list[Any] = []
    for setting in settings[:1] if quick else settings:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "rows.json"
            program = (
                "import json, pathlib\n"
                f"from benchmarks import {module}\n"
                f"rows = {module}.measure({quick}, {rounds})\n"
                f"pathlib.Path({str(path)!r}).write_text(json.dumps(rows))\n"
            )
            command = [sys.executable, "-c", program]
            subprocess.run(command, env=inherited | SETTINGS[setting], check=True)
            rows += [{"memory": setting, **row} for row in json.loads(path.read_text())]
    return rows
