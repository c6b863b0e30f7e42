"""Writes the reference, a page of every public name made of its docstring.

python -W error docs/build.py [FOLDER]    # needs the "docs" extra; writes build/docs by default
"""

import dataclasses
import pathlib
import sys

import pdoc
import pdoc.render

import grain_mix as gm
from grain_mix import _transforms


def main(folder: pathlib.Path) -> None:
    # What all three share is shown once, where their common fields are.
    for name in ("map", "mix", "draw"):
        method = vars(_transforms.MixedBatch)[name]
        method.__qualname__ = f"MixUpBatch.{name}"
        setattr(gm.MixUpBatch, name, method)
    for name in gm.__all__:  # pdoc leaves out what has no docstring, signatures as well
        if dataclasses.is_dataclass(getattr(gm, name)):
            getattr(gm, name).__init__.__doc__ = "All fields and their defaults."
    pdoc.render.configure(
        docformat="google", include_undocumented=False, search=False, show_source=False
    )
    pdoc.pdoc("grain_mix", output_directory=folder)
    page = (folder / "grain_mix.html").read_text()
    names = [name for name in gm.__all__ if name[0] != "_"]
    names += ["MixUpBatch.map", "MixUpBatch.mix", "MixUpBatch.draw"]
    missing = [name for name in names if f'id="{name}"' not in page]
    if missing:
        raise SystemExit(f"not on the page: {missing}")
    print(folder / "grain_mix.html")


if __name__ == "__main__":
    main(pathlib.Path(*sys.argv[1:] or ["build/docs"]))
