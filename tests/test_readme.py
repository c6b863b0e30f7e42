"""The README's script trains as it stands, and no public name is left out."""

import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from common import Rng, run_python
from PIL import Image

import grain_mix as gm

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
import renew  # noqa: E402

README = ROOT / "README.md"


def run(folder: Path, script: str) -> str:
    """In an empty folder, as a user would run it."""
    (folder / "program.py").write_text(script)
    done = run_python("program.py", cwd=folder)
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_script_trains_and_mixing_helps(tmp_path: Path) -> None:
    [script] = renew.programs(README)
    line = re.compile(r"(\w+) mixing: (\d+\.\d) % of 360 test digits, ± (\d+\.\d)\n")
    [without, mixed] = line.findall(run(tmp_path, script))
    assert (without[0], mixed[0]) == ("without", "with")
    assert float(mixed[1]) > float(without[1]) + 2
    [shown, shown_mixed] = line.findall(README.read_text())
    for printed, stands in [(without, shown), (mixed, shown_mixed)]:
        difference = abs(float(printed[1]) - float(stands[1]))
        assert difference < 5, "python docs/renew.py"


def test_the_cost_is_the_measured_one() -> None:
    text = README.read_text()
    assert renew.filled(text, "cost", renew.cost()) == text, "python docs/renew.py"


@pytest.mark.slow
def test_the_script_runs_with_workers(tmp_path: Path) -> None:
    """As README says: nothing else has to change."""
    [script] = renew.programs(README)
    for old, new in [
        ("worker_count=0", "worker_count=2"),
        ("num_epochs=100", "num_epochs=2"),
        ("range(4)", "range(2)"),
        ("in MIXES.items()", "in list(MIXES.items())[1:]"),
    ]:
        assert script != (script := script.replace(old, new))
    assert run(tmp_path, script).count("test digits") == 1


@pytest.mark.slow
def test_a_folder_is_trained_on_killed_and_resumed(tmp_path: Path, rng: Rng) -> None:
    """In the same way as if nothing had happened, by two workers."""
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(20):  # of different sizes, some grey
            pixels = rng.integers(0, 256, (40 + i, 60, 3), np.uint8)
            photo = Image.fromarray(pixels).convert("L" if i % 3 else "RGB")
            photo.save(tmp_path / "photos" / kind / f"{i}.{'JPG' if i % 2 else 'png'}")
    script, _ = renew.programs(renew.OWN)
    constants = re.compile("EPOCHS, BATCH, SIZE, SAVE_EVERY = .*")
    script = constants.sub("EPOCHS, BATCH, SIZE, SAVE_EVERY = 60, 8, 16, 20", script)
    killed, resumed = renew.killed_and_resumed(script, tmp_path, step=20)
    assert killed.startswith("step 20: ")
    assert "test images" not in killed
    first, *lines = resumed.splitlines()
    step = int(first.removeprefix("goes on after step "))
    assert 20 <= step < 240
    shutil.rmtree(tmp_path / "checkpoints")
    never_killed = run(tmp_path, script).splitlines()
    assert never_killed[step // 20 :] == lines
    assert len(never_killed) == 240 // 20 + 1


def test_the_public_names_are_documented() -> None:
    readme = README.read_text()
    for name in set(gm.__all__) - {"__version__", "Draw"}:
        assert getattr(gm, name).__doc__
        assert f"`{name}`" in readme or f"gm.{name}" in readme, name


def test_links_on_the_index_page_are_absolute(tmp_path: Path) -> None:
    """A release writes the address, which it alone knows. Each link leads to a file."""
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    address = "https://example.org/owner/name"
    run_python(ROOT / ".ci" / "address.py", address, "v1.2.3", cwd=tmp_path)
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
