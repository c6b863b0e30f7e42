"""The plan of the package: which module may import which names."""

import ast
import functools
import graphlib
import pathlib

import grain_mix

ROOT = pathlib.Path(grain_mix.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


@functools.cache
def imports(name: str) -> dict[str, set[str]]:
    """The modules of ours that a module imports, each with the names that it takes."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grain_mix"):
            module = (node.module or "").removeprefix("grain_mix").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                if inner in FILES:
                    found.setdefault(inner, set())
                else:
                    found.setdefault(module or "__init__", set()).add(alias.name)
    return found


def test_no_module_is_imported_in_a_circle() -> None:
    order = list(graphlib.TopologicalSorter({name: imports(name) for name in FILES}).static_order())
    assert order.index("_errors") < order.index("_plan") < order.index("_transforms")
    assert not imports("_errors")


def test_imports_have_few_layers() -> None:
    @functools.cache
    def floor(name: str) -> int:
        return 1 + max((floor(below) for below in imports(name)), default=0)

    assert max(map(floor, FILES)) <= 11, {name: floor(name) for name in FILES}


def test_transforms_know_no_kind_by_name_but_the_short_forms() -> None:
    """A new kind of target is one class, and no other file knows of it."""
    for name in FILES:
        taken = imports(name)
        if name in ("__init__", "targets") or name.startswith("targets."):
            continue
        kinds = {
            each
            for module, names in taken.items()
            if module.startswith("targets")
            for each in names
        }
        assert kinds <= {
            "Target",
            "Space",
            "OneHot",
            "Ready",
            "check_count",
            "check_smoothing",
            "ValueMap",
        }, (
            name,
            kinds,
        )


def test_no_module_uses_a_private_name_of_another() -> None:
    for name, tree in TREES.items():
        for module, names in imports(name).items():
            assert not [each for each in names if each[0] == "_" and each != "__version__"], module
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.value.id in imports(name) and node.attr[0] == "_"
                assert not private, f"{name}: {node.value.id}.{node.attr}"


def test_no_file_holds_more_than_a_fifth() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert max(lines.values()) * 5 <= sum(lines.values()), lines
