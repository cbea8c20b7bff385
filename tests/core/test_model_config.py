"""Model configurations: defaults, dumps, and what is refused with which words."""

import json

import pytest
import torch
from pydantic import TypeAdapter

from wavelet_core import ConfigurationError, LiftingWavelet, ModelConfig, ModelShape, MultinodalConfig
from wavelet_core.config import next_power_of_two, parse, parse_model

MULTI_BASIS = {"kind": "multi_basis"}
PRODUCT_KEY = {"kind": "product_key", "num_keys": 16, "top_k": 2}

# What is asked for, and what the one line about it must name: both fields where two exclude each other.
REFUSED = {
    "unknown field": ({"widht": 12}, ["widht", "did you mean 'width'", "Known fields: kind, vocabulary_size"]),
    "unknown component field": ({"mixer": {"rnk": 3}}, ["mixer.rnk", "did you mean 'rank'"]),
    "unknown memory field": ({"memories": [{"kind": "mlp", "expand": 3}]}, ["memories[0].expand", "'expansion'"]),
    "unknown multinodal field": ({"kind": "multinodal", "cell": 2}, ["cell", "did you mean 'cells'"]),
    "unknown component": ({"transform": "hadamard"}, ["transform", "'hadamard'", "walsh_hadamard"]),
    "memory without kind": ({"memories": [{"expansion": 3}]}, ["memories[0]", "needs `kind`", "mlp"]),
    "component of wrong type": ({"mixer": 3}, ["mixer", "name of a mixer or a mapping", "3"]),
    "component of another kind": ({"mixer": LiftingWavelet.Config()}, ["mixer", "unknown mixer 'lifting'"]),
    "wrong type": ({"layers": "two"}, ["layers", "integer", "'two'"]),
    "wrong type in a component": ({"mixer": {"rank": "low"}}, ["mixer.rank", "integer", "'low'"]),
    "list for a number": ({"width": [12]}, ["width", "integer"]),
    "no number": ({"width": None}, ["width", "integer"]),
    "zero layers": ({"layers": 0}, ["layers", "greater than or equal to 1"]),
    "too many levels": ({"levels": 31}, ["levels", "30"]),
    "dropout of one": ({"embedding_dropout": 1.0}, ["embedding_dropout", "less than 1"]),
    "negative rank": ({"mixer": {"rank": -1}}, ["mixer.rank", "greater than or equal to 0"]),
    "unknown gate": ({"mixer": {"gate": "tanh"}}, ["mixer.gate", "silu"]),
    "unknown initialization": ({"wavelet": {"initialization": "ones"}}, ["wavelet.initialization", "haar"]),
    "widths of wrong length": (
        {"levels": 3, "mixer": {"widths": [1, 1]}},
        ["widths", "2 entries", "model.levels=3", "4"],
    ),
    "width share of zero": (
        {"levels": 1, "mixer": {"widths": [1, 0]}},
        ["widths=[1.0, 0.0]", "above 0", "model.width"],
    ),
    "even crawl": ({"wavelet": {"crawl": 4}}, ["wavelet", "crawl=4", "even", "3 or 5", "model.levels"]),
    "crawl beyond 33": ({"wavelet": {"crawl": 35}}, ["wavelet.crawl", "33"]),
    "shared multi-basis": ({"wavelet": MULTI_BASIS}, ["wavelet", "multi_basis", "model.shared_wavelet"]),
    "even crawl in a basis": (
        {"shared_wavelet": False, "wavelet": MULTI_BASIS | {"bases": [{}, {"crawl": 2}]}},
        ["bases[1]", "crawl=2"],
    ),
    "untied basis": (
        {"shared_wavelet": False, "wavelet": MULTI_BASIS | {"bases": [{"untied_reconstruction": True}]}},
        ["bases[0].untied_reconstruction", "model.wavelet.untied_reconstruction"],
    ),
    "no bases": ({"shared_wavelet": False, "wavelet": MULTI_BASIS | {"bases": []}}, ["wavelet.bases", "at least 1"]),
    "linear with hidden layer": (
        {"wavelet": {"network": "linear", "hidden_multiplier": 2}},
        ["network='linear'", "hidden_multiplier=2"],
    ),
    "linear with dropout": ({"wavelet": {"network": "linear", "dropout": 0.1}}, ["network='linear'", "dropout=0.1"]),
    "no projection from a padded width": (
        {"width": 12, "block": {"projection": False}},
        ["block", "projection", "model.width=12", "16"],
    ),
    "no bypass to carry": ({"bypass": None, "cross_window_state": True}, ["cross_window_state", "model.bypass"]),
    "stochastic depth of a looped block": (
        {"stochastic_depth": 0.1, "shared_block": True},
        ["stochastic_depth", "shared_block"],
    ),
    "deep mixer of depth 1": ({"mixer": {"kind": "deep_gated_spectral", "depth": 1}}, ["mixer.depth", "2"]),
    "deep mixer with widths": (
        {"mixer": {"kind": "deep_gated_spectral", "widths": [1, 1]}},
        ["mixer.widths", "unknown field"],
    ),
    "no perfect square": ({"memories": [PRODUCT_KEY | {"num_keys": 17}]}, ["memories[0]", "num_keys=17", "16 or 25"]),
    "more reads than keys": ({"memories": [PRODUCT_KEY | {"top_k": 17}]}, ["memories[0]", "top_k=17", "num_keys=16"]),
    "heads that do not divide": (
        {"width": 12, "memories": [PRODUCT_KEY | {"heads": 5}]},
        ["memories[0]", "heads=5", "model.width=12"],
    ),
    "odd head size": (
        {"width": 12, "memories": ["mlp", PRODUCT_KEY | {"heads": 4}]},
        ["memories[1]", "heads=4", "model.width", "odd"],
    ),
    "fewer seeds than cells": (
        {"kind": "multinodal", "cells": 3, "seeds": [1, 2]},
        ["seeds", "2 entries", "cells=3"],
    ),
    "more features than columns": (
        {"kind": "multinodal", "width": 8, "features_per_cell": 9},
        ["features_per_cell=9", "width=8"],
    ),
    "heads that do not divide the width of a cell": (
        {"width": 8, "memories": [PRODUCT_KEY | {"heads": 3}], "kind": "multinodal"},
        ["heads=3", "model.width=8"],
    ),
}


@pytest.mark.parametrize(("data", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_when_it_is_read(data, named):
    with pytest.raises(ConfigurationError) as refused:
        parse_model({"vocabulary_size": 29} | data, "file.yaml: model")
    message = str(refused.value)
    assert message.startswith("file.yaml: model: ") and "\n" not in message
    assert all(part in message for part in named), message


def test_every_mistake_has_its_own_line():
    with pytest.raises(ConfigurationError) as refused:
        parse(ModelConfig, {"layers": 0, "width": "wide", "mixer": {"rank": -1, "gate": "tanh"}})
    assert [line.split(":")[1].strip() for line in str(refused.value).splitlines()] == [
        "width",
        "layers",
        "mixer.rank",
        "mixer.gate",
    ]


def test_what_is_not_a_mapping_is_refused():
    with pytest.raises(ConfigurationError, match=r"file\.yaml: .*dictionary"):
        parse(ModelConfig, ["width", 3], "file.yaml")


def test_mistakes_are_found_under_stable_parametrization_too():
    with pytest.raises(ConfigurationError, match=r"mixer.*rnk.*did you mean 'rank'"):
        parse(ModelConfig, {"stable_parametrization": True, "mixer": {"rnk": 3}})
    with pytest.raises(ConfigurationError, match=r"mixer: .*'gated_spectrl'"):
        parse(ModelConfig, {"stable_parametrization": True, "mixer": "gated_spectrl"})
    with pytest.raises(ConfigurationError, match=r"memories: .*list"):
        parse(ModelConfig, {"stable_parametrization": True, "memories": 3})
    with pytest.raises(ConfigurationError, match=r"stable_parametrization: .*boolean"):
        parse(ModelConfig, {"stable_parametrization": "yes"})


def test_every_configuration_survives_a_dump(make_config, architecture):
    config = make_config(architecture)
    for mode in ("json", "python"):
        assert parse_model(config.model_dump(mode=mode)) == config
    assert parse_model(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_a_short_dump_still_names_the_components(make_config):
    config = make_config({"mixer": {"rank": 2}, "bypass": "ema"})
    short = config.model_dump(exclude_defaults=True)
    assert short["mixer"] == {"kind": "gated_spectral", "rank": 2} and short["bypass"] == {"kind": "ema"}
    assert ModelConfig.model_validate(short) == config


def test_components_can_be_named_mapped_or_given():
    by_name, by_mapping = parse(ModelConfig, {"wavelet": "lifting"}), parse(ModelConfig, {"wavelet": {}})
    given = ModelConfig(wavelet=LiftingWavelet.Config())
    assert by_name == by_mapping == given == ModelConfig()


def test_sections_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        ModelConfig().width = 3
    with pytest.raises(ValueError, match="frozen"):
        ModelConfig().mixer.rank = 3


def test_defaults_are_not_shared_between_configurations():
    assert ModelConfig().memories is not ModelConfig().memories


def test_every_field_says_what_it_is():
    configs = {type(config) for _, _, config in ModelConfig(memories=["mlp", "product_key"]).components()}
    for section in {ModelConfig, MultinodalConfig, *configs}:
        for name, field in section.model_fields.items():
            assert name == "kind" or (field.description and len(field.description) > 8), (section, name)


def test_there_is_a_json_schema():
    schema = TypeAdapter(ModelConfig).json_schema()
    assert schema["additionalProperties"] is False
    text = json.dumps(schema["properties"]["mixer"])
    assert "gated_spectral" in text and "depth" in text


@pytest.mark.parametrize(
    ("width", "transform", "padded"),
    [
        (12, "walsh_hadamard", 16),
        (16, "walsh_hadamard", 16),
        (12, "identity", 12),
        (12, "hartley", 12),
        (12, "learned_butterfly", 16),
    ],
)
def test_the_width_is_padded_as_the_transform_needs(make_config, width, transform, padded):
    shape = make_config({"width": width, "transform": transform}).shape
    assert shape == ModelShape(width=width, levels=3, padded_width=padded, layers=2)
    assert shape.scales == 4


def test_a_shape_alone_pads_to_the_next_power_of_two():
    assert [next_power_of_two(number) for number in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    assert ModelShape(width=5, levels=2).padded_width == 8


def test_a_cell_is_a_wavelet_model_with_all_options_but_those_of_the_cells(make_config):
    config = make_config({"kind": "multinodal", "width": 8, "mixer": {"rank": 2}})
    assert config.cell == make_config({"width": 8, "mixer": {"rank": 2}})


def test_configurations_do_not_touch_random_numbers(make_config):
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    make_config({"stable_parametrization": True})
    assert torch.rand(1) == wanted
