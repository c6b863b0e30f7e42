"""The README's script trains as it stands, and no public name is left out."""

import pathlib
import re
import subprocess
import sys
import tomllib

import grain_mix as gm

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"


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


def test_links_on_the_index_page_are_absolute(tmp_path: pathlib.Path) -> None:
    """A release writes the address, which it alone knows. Each link leads to a file."""
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    address = "https://example.org/owner/name"
    command = [sys.executable, ROOT / ".ci" / "address.py", address, "v1.2.3"]
    subprocess.run(command, cwd=tmp_path, check=True)

    links = re.findall(r"(!?)\[[^]\n]*\]\(([^)\s]+)\)", (tmp_path / "README.md").read_text())
    assert len(links) == len(re.findall(r"\]\(", README.read_text())) > 20
    ours = 0
    for image, link in links:
        assert link.startswith("https://")
        if link.startswith(address):
            ours += 1
            kind = "raw" if image else "blob"
            assert (ROOT / link.removeprefix(f"{address}/{kind}/v1.2.3/")).is_file(), link
    assert ours > 20

    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Homepage"] == address
    assert (ROOT / urls["Changelog"].removeprefix(f"{address}/blob/v1.2.3/")).is_file()
