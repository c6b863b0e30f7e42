"""The tutorial: script and notebook are the same, and run on all data sets that it names."""

import os
import pathlib
import subprocess
import sys

import jupytext
from PIL import Image
from test_data import prepare_look_alike

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
SCRIPT, NOTEBOOK = EXAMPLES / "tutorial.py", EXAMPLES / "tutorial.ipynb"


def test_notebook_is_the_script() -> None:
    script, notebook = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (SCRIPT, NOTEBOOK)
    )
    assert notebook == script, "jupytext --to ipynb --execute examples/tutorial.py"


def test_notebook_is_stored_with_outputs() -> None:
    code = [cell for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 2**20


def test_on_cifar10(tmp_path: pathlib.Path) -> None:
    """Photographs are what the notebook itself runs on."""
    prepare_look_alike(tmp_path / ".cache" / "grain_mix")
    page = SCRIPT.read_text().replace("data.photographs", "data.cifar10")
    assert page.count("open_split = data.cifar10") == 1
    environment = os.environ | {
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(EXAMPLES)]),
        "XLA_FLAGS": "",
    }
    command = [sys.executable, "-W", "error", "-c", page]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for error in ("ValueError", "KeyError", "TypeError"):
        assert f"{error}: " in done.stdout
    for figure in ("mixup", "cutmix", "alpha", "labels"):
        with Image.open(tmp_path / f"tutorial_{figure}.png") as image:
            assert image.width > 900
