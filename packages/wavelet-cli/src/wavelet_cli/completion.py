"""What the Tab key offers for arguments of `wavelet`, by click's completion; only fields and components need torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class

from wavelet_train import PRESETS

Items = list[CompletionItem[Any]]

FOLDERS_DEEP = 3


@add_completion_class
class Bash(BashComplete):
    """bash takes `=` for the end of a word, and puts a space after everything."""

    name = "bash"
    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *[=.:] ]] && compopt -o nospace"
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        arguments, incomplete = super().get_completion_args()
        words: list[str] = []
        for word in [*arguments, incomplete]:
            if words and (word == "=" or words[-1].endswith("=")):
                words[-1] += word
            else:
                words.append(word)
        self.given = words[-1].removesuffix(incomplete.lstrip("="))
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value.removeprefix(self.given)}"


@add_completion_class
class Zsh(ZshComplete):
    """zsh puts a space after everything, too."""

    name = "zsh"
    source_template = (
        ZshComplete.source_template.replace(
            '    if [ -n "$completions_with',
            "    local -a suffix\n    [[ $key == *[=.:] ]] && suffix=(-S '')\n    if [ -n \"$completions_with",
        )
        .replace("completions_with_descriptions -U", 'completions_with_descriptions -U "${suffix[@]}"')
        .replace("compadd -U", 'compadd "${suffix[@]}" -U')
    )


def checkpoints(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Runs and checkpoints below what is typed; folders where there is none."""
    found: Items = [CompletionItem(path) for path in _checkpoints_below(incomplete, FOLDERS_DEEP)]
    return found or [CompletionItem(incomplete, type="dir")]


def configurations(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Presets and configuration files; any file where there is none."""
    return _presets_and_files(PRESETS, incomplete)


def recipes(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Recipes for quantization and files; any file where there is none."""
    package = find_spec("wavelet_quant")  # which is not imported for it
    assert package is not None and package.origin is not None
    return _presets_and_files(Path(package.origin).with_name("recipes"), incomplete)


def _presets_and_files(presets: Path, incomplete: str) -> Items:
    folder = incomplete.rpartition("/")[0]
    files = (str(path) for path in Path(folder).glob("*") if path.suffix in (".yaml", ".yml", ".json"))
    names = [*(path.stem for path in presets.glob("*.yaml")), *files]
    found: Items = [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def devices(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The kinds of devices; which of them this machine has is not asked."""
    return [name for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


def drafts(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Look-up in the text, and checkpoints."""
    found: Items = [CompletionItem("ngram")] if "ngram".startswith(incomplete) else []
    return found + checkpoints(ctx, parameter, incomplete)


def policies(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """What `--context` can be."""
    return [name for name in ("stream", "window", "hop:") if name.startswith(incomplete)]


def components(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """The names of components of a kind."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from wavelet_core.registry import registry

        return [name for name in registry.names(kind) if name.startswith(incomplete)]

    return complete


def fields(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Fields of the configuration that is named on the command line, and values of those that have a choice."""
    from wavelet_cli.field_completion import complete_field

    given = ctx.params
    # Behind an option without its value click has not come to the arguments yet.
    source = given.get("preset") or given.get("config") or next(iter(ctx.args), None)
    if source is None and given.get("resume"):
        source = given["resume"] / "config.yaml"
    return complete_field(source, given.get("overrides") or (), incomplete)


def _checkpoints_below(start: str, depth: int) -> Iterator[str]:
    folder, slash, name = start.rpartition("/")
    try:
        names = sorted(entry.name for entry in os.scandir(folder + slash or ".") if entry.is_dir())
    except OSError:
        return
    for found in names:
        if not found.startswith(name) or (found.startswith(".") and not name):
            continue
        path = f"{folder}{slash}{found}"
        if any(Path(path, part, "model.safetensors").is_file() for part in ("", "best", "last")):
            yield path
        elif depth > 1:
            yield from _checkpoints_below(f"{path}/", depth - 1)
