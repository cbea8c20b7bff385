"""`wavelet plugins`: what is installed, what it brings, and what does not work."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from wavelet_cli.output import print_json, titled
from wavelet_cli.shared_options import json_option
from wavelet_train.tables import table


@click.command("plugins", short_help="List plugins and the components they bring.")
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the plugins, their packages, and the components and commands they bring.

    A plugin that fails is listed with its traceback and stops nothing else. A name that two packages claim is
    refused to both and listed as a conflict.

    \b
    Examples:
      wavelet plugins
      wavelet plugins --json
    """
    from wavelet_core.registry import registry

    commands = ctx.find_root().command.plugin_commands  # type: ignore[attr-defined]
    plugins = [
        {
            "name": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "module": plugin.module,
            "components": _by_kind(plugin.components),
            "commands": commands.get(plugin.name, []),
            "error": plugin.error,
        }
        for plugin in registry.plugins
    ]
    if as_json:
        print_json({"plugins": plugins, "conflicts": registry.conflicts})
        return
    click.echo("\n\n".join(_describe(plugin) for plugin in plugins))
    for conflict in registry.conflicts:
        click.echo(f"\nconflict: {conflict}")


def _by_kind(components: list[tuple[str, str]]) -> dict[str, list[str]]:
    kinds = sorted({kind for kind, _ in components})
    return {kind: sorted(name for other, name in components if other == kind) for kind in kinds}


def _describe(plugin: dict[str, Any]) -> str:
    title = f"{plugin['name']} ({plugin['package']} {plugin['version']}, module {plugin['module']})"
    brought = plugin["components"] | ({"command": plugin["commands"]} if plugin["commands"] else {})
    parts = [table([(kind, ", ".join(names)) for kind, names in brought.items()])] if brought else []
    if plugin["error"]:
        title += ": BROKEN"
        parts.append(plugin["error"].rstrip())
    return titled("\n".join([title, *(textwrap.indent(part, "  ") for part in parts)]))
