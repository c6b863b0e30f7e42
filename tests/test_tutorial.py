"""The tutorial: script and notebook are the same, and print what is stored."""

import pathlib
import re
from typing import Any

import jupytext
import pytest
from common import started

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
SCRIPT, NOTEBOOK = EXAMPLES / "tutorial.py", EXAMPLES / "tutorial.ipynb"


def test_notebook_is_the_script() -> None:
    script, notebook = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (SCRIPT, NOTEBOOK)
    )
    assert notebook == script, "jupytext --to ipynb --execute examples/tutorial.py"


def printed(path: pathlib.Path) -> list[Any]:
    """What each cell printed. Numbers of lines that speak of training may differ a little."""

    def compared(line: str) -> str:
        return re.sub(r"\d+\.?\d*", "0", line) if "%" in line or "loss" in line else line

    # What a cell prints may come in one part or in several, as time has it.
    parts = [
        [output["text"] for output in cell.get("outputs", []) if output["output_type"] == "stream"]
        for cell in jupytext.read(path).cells
    ]
    return [list(map(compared, "".join(texts).splitlines())) for texts in parts]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it trains twelve networks
def test_outputs_are_those_of_the_code(tmp_path: pathlib.Path) -> None:
    """Run as a notebook, in an empty folder."""
    folder, executed = tmp_path / "empty", tmp_path / "executed.ipynb"
    folder.mkdir()
    options = ("--to", "ipynb", "--execute", "--run-path", folder, "--output", executed)
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with started("-m", "jupytext", *options, SCRIPT, **environment) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert printed(executed) == printed(NOTEBOOK), "jupytext --to ipynb --execute"
    assert sum(map(bool, printed(NOTEBOOK))) > 10


def test_notebook_is_stored_with_outputs() -> None:
    code = [cell for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 2**20


def test_every_link_leads_somewhere() -> None:
    """From here, and as the site's build rewrites them."""
    links = re.findall(r"\]\((\.\./docs/[^)#]+)", SCRIPT.read_text())
    assert len(links) > 10
    for link in links:
        assert (EXAMPLES / link).is_file(), link
