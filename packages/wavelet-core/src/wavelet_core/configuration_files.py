"""Configuration in YAML and JSON files, and in folders of presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from wavelet_core.config import ConfigurationError
from wavelet_core.messages import shortened, shown
from wavelet_core.registry import nearest


def locate(source: str | Path, presets: Path) -> Path:
    """The file that a path, or the name of a preset in a folder of YAML files, stands for.

    Raises ConfigurationError where there is none, with the nearest name.
    """
    path = Path(source)
    preset = presets / f"{source}.yaml"
    if path.is_file():
        return path
    if path.name == str(source) and preset.is_file():
        return preset
    if path.is_dir():
        raise ConfigurationError(f"{source} is a directory; name a configuration file or a preset")
    if path.suffix.lower() in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        raise ConfigurationError(f"no configuration file at {source}; check the path, or name a preset")
    names = sorted(path.stem for path in presets.glob("*.yaml"))
    raise ConfigurationError(
        f"unknown preset {shown(str(source))}{nearest(str(source), names)} Presets: {', '.join(names)}. "
        "A file must exist and end in .yaml, .yml or .json"
    )


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, not silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a list or a mapping cannot be a key", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{shown(key.value)} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises ConfigurationError with the line for what is no YAML or JSON, and for a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, _UniqueKeyLoader)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"{path}{line}: not YAML: {shortened(str(error.problem))}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {shortened(str(error))}") from error
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deeply") from None
    except ValueError as error:  # a date that does not exist, a number of ten thousand digits
        raise ConfigurationError(f"{path}: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected fields with values, found {type(data).__name__}")
    return data
