"""The plugin system: hook specifications, discovery, and what to tell a person when a plugin fails.

A plugin is a module named in the entry-point group ``wavelet`` of an installed package. It implements some of the
hooks below. The components of wavelet-core come through an entry point of its own, so nothing is privileged.
"""

from __future__ import annotations

import importlib.metadata
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pluggy

PROJECT = "wavelet"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """What a plugin can implement."""

    @hookspec
    def register_components(self, register: Callable[[str, type], None]) -> None:
        """Call ``register(kind, component_class)`` for every component that the plugin brings."""

    @hookspec
    def register_commands(self, cli: Any) -> None:
        """Add commands to the ``wavelet`` command line; ``cli`` is its ``click.Group``."""

    @hookspec
    def register_contracts(self, register: Callable[[str, Any], None]) -> None:
        """Call ``register(kind, checks)`` for every kind whose contract `check_component` takes from the plugin."""


@dataclass
class Plugin:
    """One discovered plugin and how loading it went.

    ``error`` is None for a healthy plugin and the full traceback otherwise; ``components`` lists the
    (kind, name) pairs that it registered.
    """

    name: str
    package: str
    version: str
    module: str
    error: str | None = None
    components: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def reason(self) -> str:
        """The last line of the traceback: the shortest true answer to "why?"."""
        return (self.error or "").strip().rsplit("\n", 1)[-1]


class PluginManager:
    """Discovers plugins once and calls their hooks one by one, so that a broken one stops nothing else."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self.plugins: list[Plugin] = []

    def discover(self) -> None:
        """Import every entry point of the group ``wavelet``."""
        for entry_point in sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda e: (e.name, e.value)):
            distribution = entry_point.dist
            plugin = Plugin(
                name=entry_point.name,
                package=distribution.name if distribution else "unknown package",
                version=distribution.version if distribution else "?",
                module=entry_point.value,
            )
            self.add(entry_point.load, plugin)

    def add(self, load: Callable[[], Any], plugin: Plugin) -> None:
        """Take in the plugin module that `load` gives; a failure is kept in ``plugin.error``."""
        try:
            self._manager.register(load(), name=plugin.name)
        except Exception:
            plugin.error = traceback.format_exc()
        self.plugins.append(plugin)

    def call(self, hook: str, plugin: Plugin, **arguments: Any) -> None:
        """Call one hook of one plugin; a failure is kept in ``plugin.error``."""
        if plugin.error is not None:
            return
        module = self._manager.get_plugin(plugin.name)
        others = [other for other in self._manager.get_plugins() if other is not module]
        try:
            self._manager.subset_hook_caller(hook, others)(**arguments)
        except Exception:
            plugin.error = traceback.format_exc()
