"""Imports point one way: cli -> train, quant, memory -> core, and each package imports only what it declares."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

PACKAGES = Path(__file__).parents[2] / "packages"
SIBLINGS = {
    "core": set(),
    "memory": {"core"},
    "quant": {"core"},
    "train": {"core"},
    "baselines": {"core", "memory"},
    "ecosystem": {"core", "train"},
    "cli": {"core", "memory", "quant", "train"},
}
DISTRIBUTION_OF = {
    "huggingface_hub": "huggingface-hub",
    "lm_eval": "lm-eval",
    "pydantic_core": "pydantic",  # of one release with it
    "yaml": "pyyaml",
}
OPEN_TO_OTHERS = {"ecosystem"}  # its modules are parts of libraries that extras bring, which import them
COMES_WITH_TORCH = {"triton"}  # on the platforms that have it


class Import(NamedTuple):
    where: str
    module: str
    optional: bool  # inside a function, `try` or `if`: the module can be loaded without it


def imports_of(name: str) -> Iterator[Import]:
    sources = sorted((PACKAGES / f"wavelet-{name}" / "src").rglob("*.py"))
    assert sources, f"there is no source of wavelet-{name}"
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        yield from imports_below(tree, path.relative_to(PACKAGES).as_posix())


def imports_below(node: ast.AST, file: str, optional: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        where = f"{file}:{getattr(child, 'lineno', 0)}"
        if isinstance(child, ast.Import):
            yield from (Import(where, alias.name, optional) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield Import(where, child.module or "", optional)
        elif isinstance(child, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(child.func)):
            literals = [argument.value for argument in child.args[:1] if isinstance(argument, ast.Constant)]
            yield from (Import(where, module, True) for module in literals if not module.startswith("."))
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try | ast.If)
        yield from imports_below(child, file, optional or deferred)


def project(name: str) -> dict:
    return tomllib.loads((PACKAGES / f"wavelet-{name}" / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names_in(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def runtime_dependencies(name: str) -> set[str]:
    """Names of all that installing the package surely brings: its own dependencies and those of its siblings."""
    own = names_in(project(name)["dependencies"])
    siblings = [sibling for sibling in SIBLINGS if f"wavelet-{sibling}" in own]
    return own.union(*(runtime_dependencies(sibling) for sibling in siblings))


@pytest.mark.parametrize("name", SIBLINGS)
def test_dependencies_point_one_way(name):
    declared = {
        dependency for dependency in names_in(project(name)["dependencies"]) if dependency.startswith("wavelet-")
    }
    assert declared == {f"wavelet-{sibling}" for sibling in SIBLINGS[name]}


@pytest.mark.parametrize("name", SIBLINGS)
def test_imports_point_one_way(name):
    allowed = {f"wavelet_{sibling}" for sibling in SIBLINGS[name] | {name}}
    ours = [found for found in imports_of(name) if found.module.startswith("wavelet_")]
    wrong = [f"{found.where} imports {found.module}" for found in ours if found.module.split(".")[0] not in allowed]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", SIBLINGS)
def test_third_party_imports_are_declared(name):
    runtime = runtime_dependencies(name)
    extras = [requirement for extra in project(name).get("optional-dependencies", {}).values() for requirement in extra]
    wrong = []
    for found in imports_of(name):
        top = found.module.split(".")[0]
        if top in sys.stdlib_module_names or top.startswith("wavelet_"):
            continue
        optional = found.optional or name in OPEN_TO_OTHERS
        allowed = runtime | (names_in(extras) | COMES_WITH_TORCH if optional else set())
        if DISTRIBUTION_OF.get(top, top) not in allowed:
            wrong.append(f"{found.where} imports {found.module}, which wavelet-{name} does not declare")
    assert not wrong, "\n".join(wrong)


def test_a_forbidden_import_is_seen(tmp_path):
    source = (
        "import wavelet_cli\nif True:\n    from wavelet_train.data import x\nimportlib.import_module('wavelet_quant')\n"
    )
    found = [(each.module, each.optional) for each in imports_below(ast.parse(source), "a.py")]
    assert found == [("wavelet_cli", False), ("wavelet_train.data", True), ("wavelet_quant", True)]
