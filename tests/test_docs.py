"""The Python blocks of each page are one program."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
# Those of libraries that the extra `test` lacks run in the nightly job.
PAGES = [page for page in sorted(DOCS.glob("**/*.md")) if "```python" in page.read_text()]


def run(page: pathlib.Path) -> dict[str, Any]:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    return names


def run_alone(page: pathlib.Path) -> None:
    program = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent / "examples"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_runs(page: pathlib.Path) -> None:
    for library in re.findall(r"<!-- needs (\w+) -->", page.read_text()):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed; the nightly job has it")
    if page.parent.name == "with":  # in a Python of its own, since these libraries set it up
        run_alone(page)
        return
    names = run(page)
    if page.name == "seeds.md":
        assert len(names["batches"]) == 6
        assert {len(batch["image"]) for batch in [*names["mixed"], *names["dataset"]]} == {8}
        # Another epoch, another run, and another host: other seeds.
        indexed = names["gm"].RecordSeed(id_key="index", seed=names["run_seed"])
        seeds = {int(indexed.random_map({"index": i})["mix_seed"]) for i in range(96)}
        assert len(seeds) == 96
    if page.name == "devices.md":
        batch, split = names["batch"], names["sharding"]
        assert (batch["image"].shape, batch["image"].sharding) == ((64, 8, 6, 3), split)
        assert next(iter(names["dataset"]))["label"].sharding == split
        assert names["mesh"].devices.size == jax.device_count() > 1
    if page.name == "resume.md":
        assert np.asarray(names["resumed"]["label"]).shape == (8, 10)


def test_every_link_leads_somewhere() -> None:
    """Links to files of this repository, in all pages and in the files beside the README."""
    root = DOCS.parent
    for page in [*DOCS.glob("**/*.md"), *root.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            built = link.endswith("start/tutorial.ipynb")  # a copy that the site's build makes
            if "://" not in link and not built:
                assert (page.parent / link).exists(), f"{page.relative_to(root)}: {link}"
