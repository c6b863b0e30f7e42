"""The Python blocks of each page are one program."""

import importlib.util
import linecache
import re
from pathlib import Path
from typing import Any

import jax
import pytest
from common import run_python

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(?:<!-- needs (\w+) -->\n+)?```python\n(.*?)```", re.DOTALL)
# In a Python of its own, since these libraries set it up.
ALONE = ("with", "coming_from")
FAST = ("start/quickstart.md", "guides/mistakes.md")
FAST += ("how/promises/weights.md", "how/promises/errors.md")
PAGES = [page for page in sorted(DOCS.glob("**/*.md")) if "```python" in page.read_text()]


def blocks_of(page: Path) -> list[str]:
    """Those whose library is installed. The extra `test` has Keras, the nightly job has all."""
    found = BLOCK.findall(page.read_text())
    libraries = {library for library, _ in found if library}
    missing = {library for library in libraries if importlib.util.find_spec(library) is None}
    blocks = [block for library, block in found if library not in missing]
    if not blocks:
        pytest.skip(f"{missing} is not installed; the nightly job has it")
    return blocks


def run(page: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks_of(page)):
        name = f"<{page.relative_to(DOCS)}, block {number}>"
        linecache.cache[name] = (len(block), None, block.splitlines(keepends=True), name)
        exec(compile(block, name, "exec"), names)
    return names


def marked(page: Path) -> Any:
    name = str(page.relative_to(DOCS))
    return pytest.param(page, id=name, marks=() if name in FAST else pytest.mark.slow)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("page", list(map(marked, PAGES)))
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, since some pages draw."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    if page.parent.name in ALONE:
        run_python("-c", "\n".join(blocks_of(page)), JAX_PLATFORMS="cpu")
        return
    names = run(page)
    if page.name == "seeds.md":
        assert len(names["batches"]) == 6
        assert {len(batch["image"]) for batch in [*names["mixed"], *names["dataset"]]} == {8}
        # Another epoch, another run, and another host: other seeds.
        indexed = names["gm"].RecordSeed(id_key="index", seed=names["run_seed"])
        seeds = {int(indexed.random_map({"index": i})["mix_seed"]) for i in range(96)}
        assert len(seeds) == 96
    if page == DOCS / "guides" / "devices.md":
        batch, split = names["batch"], names["sharding"]
        assert (batch["image"].shape, batch["image"].sharding) == ((64, 8, 6, 3), split)
        assert next(iter(names["dataset"]))["label"].sharding == split
        assert names["mesh"].devices.size == jax.device_count() > 1
    if page.name == "resume.md":  # as it says: two processes, the second of which restores
        script = tmp_path / "resume.py"
        script.write_text("\n".join(blocks_of(page)))
        first, second = (run_python(script, cwd=tmp_path).stdout for _ in range(2))
        assert (tmp_path / "checkpoints" / "3").is_dir()
        assert first == second != ""


def test_every_link_leads_somewhere() -> None:
    """Links to files of this repository, in all pages and in the files beside the README."""
    root = DOCS.parent
    for page in [*DOCS.glob("**/*.md"), *root.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            built = link.endswith("start/tutorial.ipynb")  # a copy that the site's build makes
            if "://" not in link and not built:
                assert (page.parent / link).exists(), f"{page.relative_to(root)}: {link}"


def test_every_test_that_a_page_names_exists() -> None:
    root = DOCS.parent
    defined = {
        name
        for file in (root / "tests").glob("*.py")
        for name in (file.name, *re.findall(r"def (test_\w+)", file.read_text()))
    }
    for page in [*DOCS.glob("**/*.md"), *root.glob("*.md"), *root.glob("*/*.md")]:
        for name in re.findall(r"[`\[/](test_\w+(?:\.py)?)", page.read_text()):
            assert name in defined, f"{page.relative_to(root)}: {name}"


def test_help_of_the_many_hosts_example_needs_no_extras() -> None:
    extras = ("flax", "optax", "orbax", "sklearn", "tensorflow_datasets", "tqdm")
    program = f"""
import runpy, sys
sys.modules |= dict.fromkeys({extras})
sys.argv = ["multihost.py", "--help"]
runpy.run_path({str(DOCS.parent / "examples" / "multihost.py")!r}, run_name="__main__")
"""
    assert "--coordinator" in run_python("-c", program).stdout
