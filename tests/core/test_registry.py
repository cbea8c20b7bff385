"""The registry: names, plugins, and what a person reads when something is missing, claimed twice or broken."""

import importlib.metadata
import types
from typing import Literal

import pytest

from wavelet_core import ComponentConfig, ConfigurationError, ModelConfig, components, hookimpl
from wavelet_core import config as config_module
from wavelet_core.config import parse
from wavelet_core.mixers import GatedSpectralMixer
from wavelet_core.registry import KINDS, Registry, RegistryError, build, registry


class DiagonalMixer:
    class Config(ComponentConfig):
        kind: Literal["diagonal"] = "diagonal"


class OtherDiagonalMixer:
    class Config(ComponentConfig):
        kind: Literal["diagonal"] = "diagonal"


class Distribution:
    def __init__(self, name, version="1.2"):
        self.name, self.version = name, version


class EntryPoint:
    """An installed plugin, as `importlib.metadata` lists it; a module that is an exception is raised on import."""

    def __init__(self, name, module, package):
        self.name, self.value, self.dist, self.module = name, f"{package}.plugin", Distribution(package), module

    def load(self):
        if isinstance(self.module, Exception):
            raise self.module
        return self.module


def plugin_module(*components):
    module = types.ModuleType("plugin")

    @hookimpl
    def register_components(register):
        for kind, component in components:
            register(kind, component)

    module.register_components = register_components
    return module


@pytest.fixture
def installed(monkeypatch):
    """installed(entry points...): a fresh registry on a machine with wavelet-core and just these plugins."""
    core = EntryPoint("core", components, "wavelet-core")

    def install(*entry_points):
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [core, *entry_points])
        fresh = Registry()
        monkeypatch.setattr(config_module, "registry", fresh)
        return fresh

    return install


def test_every_kind_of_the_core_has_components():
    assert set(KINDS) >= {"transform", "wavelet", "mixer", "bypass", "memory", "block", "sampler", "tokenizer"}
    assert {"lifting", "haar", "multi_basis"} <= set(registry.names("wavelet"))
    assert registry.get("mixer", "gated_spectral") is GatedSpectralMixer
    assert str(registry.owner("mixer", "gated_spectral")).startswith("wavelet-core ")


def test_the_core_comes_through_the_hook_that_plugins_use(installed):
    fresh = installed()
    (core,) = fresh.plugins
    assert core.package == "wavelet-core" and ("mixer", "gated_spectral") in core.components


def test_an_installed_plugin_is_found_and_named(installed):
    fresh = installed(EntryPoint("diagonal", plugin_module(("mixer", DiagonalMixer)), "diagonal-mixer"))
    assert fresh.get("mixer", "diagonal") is DiagonalMixer
    assert str(fresh.owner("mixer", "diagonal")) == "diagonal-mixer 1.2"
    config = parse(ModelConfig, {"mixer": "diagonal"})
    assert isinstance(config.mixer, DiagonalMixer.Config)
    with pytest.raises(ConfigurationError, match=r"mixer\.gain: unknown field"):
        parse(ModelConfig, {"mixer": {"kind": "diagonal", "gain": 1}})


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all():
    with pytest.raises(
        RegistryError, match=r"unknown wavelet 'haarr'; did you mean 'haar'\? Registered: haar, lifting"
    ):
        registry.get("wavelet", "haarr")
    with pytest.raises(RegistryError, match=r"unknown wavelet 'qqq'\. Registered: "):
        registry.get("wavelet", "qqq")
    with pytest.raises(ConfigurationError, match=r"mixer: .*did you mean 'gated_spectral'"):
        parse(ModelConfig, {"mixer": "gated_spectrl"})


def test_a_broken_plugin_stops_nothing_and_is_named_when_it_may_be_needed(installed):
    fresh = installed(
        EntryPoint("broken", ImportError("no module named numpyy"), "broken-package"),
        EntryPoint("diagonal", plugin_module(("mixer", DiagonalMixer)), "diagonal-mixer"),
    )
    assert fresh.get("mixer", "diagonal") is DiagonalMixer
    broken = next(plugin for plugin in fresh.plugins if plugin.error)
    assert broken.package == "broken-package" and "Traceback" in broken.error
    assert broken.reason == "ImportError: no module named numpyy"
    with pytest.raises(RegistryError, match=r"'broken' of broken-package 1\.2 failed to load \(ImportError: no module"):
        fresh.get("mixer", "fancy")


def test_a_plugin_whose_hook_fails_is_reported(installed):
    fresh = installed(EntryPoint("odd", plugin_module(("mixer", DiagonalMixer), ("flavour", DiagonalMixer)), "odd-one"))
    assert fresh.names("mixer").count("diagonal") == 1
    (odd,) = (plugin for plugin in fresh.plugins if plugin.error)
    assert "unknown component kind 'flavour'" in odd.reason


def test_two_packages_that_claim_a_name_are_both_named_and_both_refused(installed):
    fresh = installed(
        EntryPoint("first", plugin_module(("mixer", DiagonalMixer)), "first-package"),
        EntryPoint("second", plugin_module(("mixer", OtherDiagonalMixer)), "second-package"),
    )
    with pytest.raises(RegistryError, match=r"claimed by two packages, first-package 1\.2 and second-package 1\.2"):
        fresh.get("mixer", "diagonal")
    (message,) = fresh.conflicts
    assert "uninstall one of them or rename" in message
    assert fresh.get("mixer", "gated_spectral") is GatedSpectralMixer
    assert "diagonal" not in fresh.names("mixer"), "what cannot be used must not be offered"


def test_a_plugin_cannot_take_a_name_of_the_core(installed):
    class Impostor:
        class Config(ComponentConfig):
            kind: Literal["gated_spectral"] = "gated_spectral"

    fresh = installed(EntryPoint("bold", plugin_module(("mixer", Impostor)), "bold-package"))
    with pytest.raises(RegistryError, match=r"claimed by two packages, bold-package .* and wavelet-core"):
        fresh.get("mixer", "gated_spectral")


def test_registering_the_same_class_twice_is_no_conflict(installed):
    fresh = installed()
    fresh.register("mixer", DiagonalMixer)
    fresh.register("mixer", DiagonalMixer)
    assert not fresh.conflicts


def test_direct_registration_without_a_package(installed):
    fresh = installed()
    assert fresh.plugins
    fresh.register("mixer", DiagonalMixer)
    assert fresh.get("mixer", "diagonal") is DiagonalMixer
    plugin = fresh.add_plugin(plugin_module(("bypass", OtherDiagonalMixer)), "notebook")
    assert plugin.components == [("bypass", "diagonal")]
    assert fresh.owner("bypass", "diagonal").package == "this program"


@pytest.mark.parametrize("component", [object, type("NoKind", (), {"Config": ComponentConfig})])
def test_a_class_without_a_named_config_is_told_what_it_needs(installed, component):
    with pytest.raises(RegistryError, match=r'needs a nested Config.*`kind: Literal\["my_name"\] = "my_name"`'):
        installed().register("mixer", component)


def test_an_unknown_kind_of_component_is_refused(installed):
    with pytest.raises(RegistryError, match="unknown component kind 'mixr'; did you mean 'mixer'"):
        installed().register("mixr", DiagonalMixer)


def test_build_makes_what_the_configuration_names():
    config = ModelConfig(width=8, levels=1)
    mixer = build("mixer", config.mixer, config.shape)
    assert type(mixer) is GatedSpectralMixer and len(mixer.banks) == 1
