"""The README's script trains as it stands, and no public name is left out."""

import pathlib
import re
import subprocess
import sys

import grain_mix as gm

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_script_trains(tmp_path: pathlib.Path) -> None:
    """In an empty folder, as a user would run it."""
    [script] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"(\d+\.\d)% of 360 digits that it has not seen\n", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 85


def test_the_public_names_are_documented() -> None:
    readme = README.read_text()
    for name in set(gm.__all__) - {"__version__", "Draw"}:
        assert getattr(gm, name).__doc__
        assert f"`{name}`" in readme or f"gm.{name}" in readme, name
