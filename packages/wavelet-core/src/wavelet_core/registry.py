"""Kinds, names and `build`: how a configuration names a component and gets an object.

A component is a class with a nested `Config` (a `ComponentConfig` whose `kind` default is the component's name).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from wavelet_core.messages import shown
from wavelet_core.plugins import Plugin, PluginManager

KINDS = (
    "model",
    "transform",
    "wavelet",
    "mixer",
    "bypass",
    "memory",
    "block",
    "sampler",
    "tokenizer",
    "dataset",
    "optimizer",
    "schedule",
    "logger",
    "format",
    "quantizer",
    "kernel",
)


class RegistryError(ValueError):
    """A component that cannot be registered or found; the message says what would help."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the closest known word, or "." when none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else "."


class Registry:
    """Component classes by kind and name. Plugins are loaded at the first look-up."""

    def __init__(self) -> None:
        self._manager: PluginManager | None = None
        self._components: dict[tuple[str, str], tuple[type, Plugin]] = {}
        self._conflicts: dict[tuple[str, str], str] = {}

    @property
    def manager(self) -> PluginManager:
        if self._manager is None:
            self._manager = PluginManager()
            self._manager.discover()
            for plugin in self._manager.plugins:
                self._collect(plugin)
        return self._manager

    @property
    def plugins(self) -> list[Plugin]:
        """Every plugin found, the broken ones included."""
        return self.manager.plugins

    @property
    def conflicts(self) -> list[str]:
        """One message for every name that two packages claim; such a name cannot be used."""
        assert self.manager
        return list(self._conflicts.values())

    def _collect(self, plugin: Plugin) -> None:
        self.manager.call(
            "register_components", plugin, register=lambda kind, component: self.register(kind, component, plugin)
        )

    def add_plugin(self, module: Any, name: str, package: str = "this program", version: str = "?") -> Plugin:
        """Register a plugin module that is not installed as a package (tests, notebooks)."""
        plugin = Plugin(name, package, version, getattr(module, "__name__", type(module).__name__))
        self.manager.add(lambda: module, plugin)
        self._collect(plugin)
        return plugin

    def register(self, kind: str, component: type, plugin: Plugin | None = None) -> None:
        """Add one component class.

        Raises RegistryError for an unknown kind, a class without a usable `Config`, or a name that another package
        has claimed; the name is then refused to both until one of them is uninstalled.
        """
        plugin = plugin or Plugin("direct", component.__module__, "?", component.__module__)
        if kind not in KINDS:
            raise RegistryError(f"unknown component kind {kind!r}{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}")
        config = getattr(component, "Config", None)
        field = getattr(config, "model_fields", {}).get("kind")
        if field is None or not isinstance(field.default, str):
            raise RegistryError(
                f"{component.__qualname__} cannot be registered as a {kind}: it needs a nested Config, a subclass of "
                f'wavelet_core.ComponentConfig with a field like `kind: Literal["my_name"] = "my_name"`'
            )
        key = (kind, field.default)
        if key in self._components and self._components[key][0] is not component:
            first = self._components[key][1]
            message = (
                f"{kind} {key[1]!r} is claimed by two packages, {first} and {plugin}; "
                "uninstall one of them or rename its component"
            )
            self._conflicts[key] = message
            raise RegistryError(message)
        self._components[key] = (component, plugin)
        plugin.components.append(key)

    def names(self, kind: str) -> list[str]:
        """The names that can be used for a kind, sorted; those that two packages claim are left out."""
        assert self.manager
        return sorted(name for registered, name in self._components.keys() - self._conflicts if registered == kind)

    def get(self, kind: str, name: str) -> type:
        """The component class for a name.

        Raises RegistryError that names the nearest match, what is registered, and plugins that failed to load.
        """
        assert self.manager
        if (kind, name) in self._conflicts:
            raise RegistryError(self._conflicts[kind, name])
        if (kind, name) in self._components:
            return self._components[kind, name][0]
        names = self.names(kind)
        message = f"unknown {kind} {shown(name)}{nearest(name, names)} Registered: {', '.join(names) or 'none'}"
        broken = [f"plugin {p.name!r} of {p} failed to load ({p.reason})" for p in self.plugins if p.error]
        if broken:
            message += f". It may belong to one that is broken: {'; '.join(broken)}. See `wavelet plugins`"
        raise RegistryError(message)

    def owner(self, kind: str, name: str) -> Plugin:
        """The plugin that a component came from."""
        self.get(kind, name)
        return self._components[kind, name][1]


registry = Registry()


def build(kind: str, config: Any, *arguments: Any, **keywords: Any) -> Any:
    """Make the component that `config` names: `build("mixer", config.mixer, shape)`."""
    return registry.get(kind, config.kind)(config, *arguments, **keywords)
