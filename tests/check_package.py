"""Builds the package and tries it in an empty environment.

    python tests/check_package.py    # needs the "dev" extra and a package index

Checks what wheel and sdist hold, what `twine`, `pip check`, `mypy` and `pyright` say, and that the
quickstart's recipe and a program that uses every public name run with nothing else installed.
"""

import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "typing_program.py"
QUICKSTART = ROOT / "docs" / "start" / "quickstart.md"


def run(*command: object, cwd: pathlib.Path) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def check_contents(dist: pathlib.Path) -> pathlib.Path:
    """Returns the wheel."""
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "grain_mix").rglob("*.py")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == modules | {"grain_mix/py.typed"}, names
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(dist.parent / "sdist", filter="data")
    assert modules | {"grain_mix/py.typed", "LICENSE", "README.md", "pyproject.toml"} <= names
    [source] = (dist.parent / "sdist").iterdir()
    links = "tests/test_docs.py::test_every_link_leads_somewhere"
    run(sys.executable, "-m", "pytest", "-q", "-n0", "tests/test_plan.py", links, cwd=source)
    return wheel


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
        wheel = check_contents(folder / "dist")
        run(sys.executable, "-m", "twine", "check", "--strict", *wheel.parent.iterdir(), cwd=folder)

        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "-q", wheel, cwd=folder)
        run(python, "-m", "pip", "check", cwd=folder)

        [recipe, *_] = re.findall(r"```python\n(.*?)```", QUICKSTART.read_text(), re.S)
        (folder / "recipe.py").write_text(recipe)
        run(python, "-W", "error", folder / "recipe.py", cwd=folder)
        run(python, "-W", "error", PROGRAM, cwd=folder)

        # In the folder, where no other copy of the package can be found than the installed one.
        (folder / "program.py").write_text(PROGRAM.read_text())
        # Grain itself has no types.
        strict = ("--strict", "--disable-error-code=import-untyped", "--python-executable", python)
        run(sys.executable, "-m", "mypy", *strict, folder / "program.py", cwd=folder)
        run(sys.executable, "-m", "pyright", "--pythonpath", python, "program.py", cwd=folder)


if __name__ == "__main__":
    main()
