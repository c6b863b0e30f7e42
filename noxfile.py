"""The tests over every supported Python and the oldest and newest releases of what we stand on.

`nox` runs all of it, and `nox -s "tests-3.11(versions='lowest')" -- tests/test_blend.py` a part.
"""

import pathlib
import tomllib

import nox

nox.options.reuse_existing_virtualenvs = True
PYTHONS = ["3.11", "3.12", "3.13"]
PROJECT = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]


def lowest(python: str) -> list[str]:
    """The lower bounds of pyproject.toml; NumPy's wheels for a Python begin with a later one."""
    bounds = [bound.replace(">=", "==") for bound in PROJECT["dependencies"]]
    return [
        bound.replace("numpy==2.0", "numpy==2.1") if python == "3.13" else bound for bound in bounds
    ]


@nox.session(python=PYTHONS)
@nox.parametrize("versions", ["lowest", "newest"])
def tests(session: nox.Session, versions: str) -> None:
    pins = lowest(session.python) if versions == "lowest" else []
    upgrade = [] if pins else ["--upgrade", "--upgrade-strategy=eager"]
    session.install(*upgrade, "-e", ".[test]", *pins)
    session.run("python", "-m", "pip", "check")
    session.run("pytest", *(session.posargs or ["-m", ""]))  # the slow ones as well
