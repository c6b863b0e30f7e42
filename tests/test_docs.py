"""The Python blocks of each page are one program."""

import pathlib
import re
from typing import Any

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_runs(page: pathlib.Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    if page.name == "seeds.md":
        assert len(names["batches"]) == 6
        assert {len(batch["image"]) for batch in [*names["mixed"], *names["dataset"]]} == {8}
        # Another epoch, another run, and another host: other seeds.
        indexed = names["gm"].RecordSeed(id_key="index", seed=names["run_seed"])
        seeds = {int(indexed.random_map({"index": i})["mix_seed"]) for i in range(96)}
        assert len(seeds) == 96
