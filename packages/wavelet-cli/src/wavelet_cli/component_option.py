"""Options whose value is a component: its name, or its configuration as YAML."""

from __future__ import annotations

from typing import Any

import click


class Component(click.ParamType):
    """A name or {kind: ..., ...}, read as YAML; whether there is such a component is asked later."""

    name = "yaml"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        import yaml

        from wavelet_core.messages import shortened, shown

        try:
            component = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            self.fail(f"{shown(value)} is not YAML: {shortened(' '.join(str(error).split()))}", param, ctx)
        except RecursionError:
            self.fail(f"{shown(value)} is nested too deeply", param, ctx)
        if not isinstance(component, (str, dict)):
            self.fail(f"{shown(value)} must be a name or {{kind: ..., ...}}.", param, ctx)
        return component
