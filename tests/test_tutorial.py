"""The tutorial: script and notebook are the same. `.ci/run` runs it in an empty folder."""

import pathlib
import re

import jupytext

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
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 2**20


def test_every_link_leads_somewhere() -> None:
    """From here, and as the site's build rewrites them."""
    links = re.findall(r"\]\((\.\./docs/[^)#]+)", SCRIPT.read_text())
    assert len(links) > 10
    for link in links:
        assert (EXAMPLES / link).is_file(), link
