"""No import goes round: the import graph of every package has no cycle, imports inside functions counted."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
SOURCES = sorted(path for path in PACKAGES.glob("*/src/*") if path.is_dir())

Graph = dict[str, set[str]]


def import_graph(package: Path) -> Graph:
    """Which of a package's modules each of them names in an import; the package's folder is its name.

    `from package import name` is an import of the submodule, if there is one of that name, else of package/__init__.
    That `import package.module` runs package/__init__ too is not counted: every module would depend on it.
    """
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: Graph = {}
    for name, path in modules.items():
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = imported(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)), inside, modules.keys())
        graph[name] = {module for module in found if module in modules and module != name}
    return graph


def imported(node: ast.AST, inside: str, modules: set[str]) -> Iterator[str]:
    """Modules imported anywhere below a node of a module in the package `inside`, save for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in child.orelse:
                yield from imported(ast.Module([statement], []), inside, modules)
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = inside.split(".")[: len(inside.split(".")) - child.level + 1] if child.level else []
            origin = ".".join([*above, *filter(None, [child.module])])
            for alias in child.names:
                submodule = f"{origin}.{alias.name}"
                yield submodule if submodule in modules else origin
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
            yield from (each.value for each in child.args[:1] if isinstance(each, ast.Constant))
        yield from imported(child, inside, modules)


def cycles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972), each sorted by name."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            start = path.index(module)
            component, path[start:] = path[start:], []
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def described(graph: Graph, component: list[str]) -> str:
    lines = [f"  {module} imports {', '.join(sorted(graph[module] & set(component)))}" for module in component]
    return "\n".join([f"{len(component)} modules import each other in a circle:", *lines])


def test_every_package_is_looked_at():
    assert len(SOURCES) >= 5
    for source in SOURCES:
        assert len(import_graph(source)) == len(list(source.rglob("*.py"))) > 0


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_no_import_goes_round(source):
    graph = import_graph(source)
    found = [described(graph, component) for component in cycles(graph)]
    assert not found, "\n".join(found)


@pytest.fixture
def package(tmp_path):
    """package(module=source, ...): a package of that name; "sub__module" is module in the subpackage sub."""

    def write(**sources):
        for name, source in sources.items():
            path = tmp_path / "package" / (name.replace("__", "/") + ".py" if name != "init" else "__init__.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return import_graph(tmp_path / "package")

    return write


CYCLES = {
    "direct": ("from package.b import y", "from package.c import z", "import package.a"),
    "deferred": ("import package.b", "def f():\n    from package import c", "class C:\n    import package.a"),
    "relative": ("from . import b", "from .c import z", "from .a import x, y"),
    "by name": ("import package.b", "import package.c", "importlib.import_module('package.a')"),
    "else": ("import package.b", "import package.c", "if TYPE_CHECKING:\n    pass\nelse:\n    import package.a"),
}


@pytest.mark.parametrize("sources", CYCLES.values(), ids=CYCLES.keys())
def test_a_cycle_is_found_and_its_modules_are_named(package, sources):
    graph = package(init="", **dict(zip("abc", sources, strict=True)), d="import package.a, os")
    assert cycles(graph) == [["package.a", "package.b", "package.c"]]
    assert "3 modules" in described(graph, cycles(graph)[0])
    assert "\n  package.c imports package.a" in described(graph, cycles(graph)[0])


def test_a_name_of_the_package_is_an_import_of_its_init(package):
    graph = package(init="from package.a import x", a="def f():\n    from package import x, b", b="")
    assert graph["package.a"] == {"package", "package.b"}
    assert cycles(graph) == [["package", "package.a"]]


def test_two_cycles_are_two(package):
    graph = package(a="import package.b", b="import package.a", c="import package.d, package.a", d="import package.c")
    assert cycles(graph) == [["package.a", "package.b"], ["package.c", "package.d"]]


def test_no_cycle_is_seen_where_there_is_none(package):
    graph = package(
        init="from package.a import x",
        a="from package.sub.c import z\nif TYPE_CHECKING:\n    from package.b import y",
        b="from package import a",
        sub__c="import typing\nif typing.TYPE_CHECKING:\n    from package import x",
        sub__d="from .c import z\nfrom .. import b",
    )
    assert graph == {
        "package": {"package.a"},
        "package.a": {"package.sub.c"},
        "package.b": {"package.a"},
        "package.sub.c": set(),
        "package.sub.d": {"package.sub.c", "package.b"},
    }
    assert cycles(graph) == []
