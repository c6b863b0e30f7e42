"""The plan of the package: which module may import which names."""

import ast
import graphlib
import pathlib

import grain_mix

FILES = {path.stem: path for path in pathlib.Path(grain_mix.__file__).parent.glob("*.py")}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(name: str) -> dict[str, set[str]]:
    """The modules of ours that a module imports, each with the names that it takes."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grain_mix"):
            module = (node.module or "").removeprefix("grain_mix").removeprefix(".")
            for alias in node.names:
                if module:
                    found.setdefault(module, set()).add(alias.name)
                else:
                    found.setdefault(alias.name, set())
    return found


def test_no_module_is_imported_in_a_circle() -> None:
    order = list(graphlib.TopologicalSorter({name: imports(name) for name in FILES}).static_order())
    assert order.index("_errors") < order.index("_parts") < order.index("_transforms")
    assert not imports("_errors")


def test_no_module_uses_a_private_name_of_another() -> None:
    for name, tree in TREES.items():
        for module, names in imports(name).items():
            assert not [each for each in names if each[0] == "_" and each != "__version__"], module
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.value.id in imports(name) and node.attr[0] == "_"
                assert not private, f"{name}: {node.value.id}.{node.attr}"


def test_no_file_holds_more_than_a_quarter() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert max(lines.values()) * 4 <= sum(lines.values()), lines
