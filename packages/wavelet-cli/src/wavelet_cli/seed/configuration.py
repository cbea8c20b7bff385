"""The original's flat `config.json` and our nested model section, both ways (docs/model.md, the seed keys)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from wavelet_core.config import ConfigurationError, parse_model
from wavelet_core.messages import shown
from wavelet_core.registry import registry


@dataclass(frozen=True)
class SeedKey:
    """One key of the original's flat configuration.

    place: where it lives in ours. absent: the value that a configuration without the key means; None where the key is
    required. note: what the translation does, where it is more than the new name that `place` gives.
    """

    name: str
    place: str
    absent: Any
    note: str = ""


TRANSFORMS = {
    "wht": "walsh_hadamard",
    "identity": "identity",
    "dht": "hartley",
    "dct": "discrete_cosine",
    "learned_butterfly": "learned_butterfly",
}

SEED_KEYS = (
    SeedKey("C", "model.width", None),
    SeedKey("layers", "model.layers", None),
    SeedKey("levels", "model.levels", None),
    SeedKey("block_size", "model.context_length", 256),
    SeedKey("tie_embedding_to_lm_head", "model.tied_embedding", False),
    SeedKey("dropout_embedding", "model.embedding_dropout", 0.0),
    SeedKey("dropout_lm_head", "model.head_dropout", 0.0),
    SeedKey("looped_blocks", "model.shared_block", False),
    SeedKey("looped_blocks_count", "model.layers", 1, "with looped_blocks it takes the place of layers"),
    SeedKey("loop_iterations", "model.loop_iterations", 1),
    SeedKey("stochastic_depth_rate", "model.stochastic_depth", 0.0),
    SeedKey("gradient_checkpointing", "model.gradient_checkpointing", False),
    SeedKey("stable_parametrization", "model.stable_parametrization", False, "turns on all six stab_* options"),
    SeedKey("stab_embed_scaling", "model.embedding_scaling", False),
    SeedKey("per_layer_embedding", "model.block.embedding_residual", False),
    SeedKey("learned_residual", "model.block.learned_residual", False),
    SeedKey("skip_proj_out", "model.block.projection", False, "negated; without effect unless C is the padded width"),
    SeedKey("stab_proj_out_scaling", "model.block.projection_scaling", False),
    SeedKey("dropout_mixer", "model.block.mixer_dropout", 0.0),
    SeedKey("dropout_projection", "model.block.projection_dropout", 0.0),
    SeedKey("wavelet_decomp_norm", "model.block.decomposition_norm", False),
    SeedKey("wavelet_recon_norm", "model.block.reconstruction_norm", False),
    SeedKey("wavelet_mode", "model.wavelet.kind", "lifting", "lifting or haar"),
    SeedKey("shared_lifting_weights", "model.shared_wavelet", False),
    SeedKey("untied_reconstruction", "model.wavelet.untied_reconstruction", False),
    SeedKey("multi_basis_lifting", "model.wavelet.kind", False, "true gives multi_basis"),
    SeedKey("multi_basis_inits", "model.wavelet.bases", ["haar", "random"], "one basis an initialization"),
    SeedKey("wavelet_crawl", "model.wavelet.crawl", False, "false gives null"),
    SeedKey("wavelet_crawl_k", "model.wavelet.crawl", 3, "used with wavelet_crawl"),
    SeedKey("lifting_linear_only", "model.wavelet.network", False, "true gives linear"),
    SeedKey("lifting_hidden_mult", "model.wavelet.hidden_multiplier", 1),
    SeedKey("lifting_init", "model.wavelet.initialization", "haar"),
    SeedKey("lifting_dropout", "model.wavelet.dropout", 0.0),
    SeedKey("stab_lifting_level_scaling", "model.wavelet.level_scaling", False),
    SeedKey(
        "mixer_transform",
        "model.transform.kind",
        "wht",
        ", ".join(f"{seed} gives {ours}" for seed, ours in TRANSFORMS.items()),
    ),
    SeedKey("low_rank", "model.mixer.rank", 0),
    SeedKey("use_mixer_gate", "model.mixer.gate", True, "false gives null"),
    SeedKey("mixer_gate_activation", "model.mixer.gate", "silu"),
    SeedKey("cross_scale_gating", "model.mixer.routing", False, "without effect without a gate or above depth 1"),
    SeedKey("per_scale_mixer_widths", "model.mixer.widths", None, "without effect above depth 1"),
    SeedKey("mixer_depth", "model.mixer.depth", 1, "above 1 gives the mixer deep_gated_spectral"),
    SeedKey("mixer_depth_stabilizers", "model.mixer.stabilizers", False),
    SeedKey("mixer_depth_residuals", "model.mixer.residuals", False),
    SeedKey("stab_spectral_norm", "model.mixer.parametrization", False, "true gives spectral_norm"),
    SeedKey("stab_mixer_eps_scaling", "model.mixer.noise_scaling", False),
    SeedKey("decompose_bypass", "model.bypass", False, "false gives null"),
    SeedKey("decompose_bypass_ema", "model.bypass.kind", False, "true gives ema"),
    SeedKey("decompose_bypass_cross_window", "model.cross_window_state", False),
    SeedKey("mlp_expansion", "model.memories[mlp].expansion", 0, "0 leaves the MLP out"),
    SeedKey("mlp_layers", "model.memories[mlp].layers", 2),
    SeedKey("dropout_mlp", "model.memories[mlp].dropout", 0.0),
    SeedKey("stab_ff_scaling", "model.memories[mlp].output_scaling", False),
    SeedKey("pkm_enabled", "model.memories[product_key]", False, "true adds the memory"),
    SeedKey("pkm_num_keys", "model.memories[product_key].num_keys", 16384),
    SeedKey("pkm_top_k", "model.memories[product_key].top_k", 32),
    SeedKey("pkm_heads", "model.memories[product_key].heads", 1),
    SeedKey("fwpkm_enabled", "model.memories[fast_weight_product_key]", False, "true adds the memory"),
    SeedKey("fwpkm_num_keys", "model.memories[fast_weight_product_key].num_keys", 16384),
    SeedKey("fwpkm_top_k", "model.memories[fast_weight_product_key].top_k", 32),
    SeedKey("fwpkm_heads", "model.memories[fast_weight_product_key].heads", 1),
    SeedKey("fwpkm_inference_updates", "model.memories[fast_weight_product_key].inference_updates", False),
    SeedKey("fwpkm_update_lr", "model.memories[fast_weight_product_key].update_learning_rate", 0.01),
    SeedKey("fwpkm_chunk_size", "model.memories[fast_weight_product_key].chunk_size", 64),
    SeedKey("multinodal_enabled", "model.kind", False, "true gives multinodal"),
    SeedKey("multinodal_num_cells", "model.cells", 2),
    SeedKey("multinodal_cell_dim", "model.width", 256, "takes the place of C"),
    SeedKey("multinodal_seeds", "model.seeds", [42, 137]),
    SeedKey("multinodal_combination", "model.combination", "average"),
    SeedKey("multinodal_cross_cell_gating", "model.cross_cell_gating", False),
    SeedKey("multinodal_cross_cell_gate_interval", "model.gate_interval", 1),
    SeedKey("multinodal_features_per_cell", "model.features_per_cell", -1, "-1 gives null"),
    SeedKey("multinodal_bagged_eps", "model.bagged_value", 1e-6),
)

REQUIRED = ("C", "layers", "levels")

# The memories in the original's order, each with the key that is false or zero without it.
MEMORIES = {"mlp": "mlp_expansion", "product_key": "pkm_enabled", "fast_weight_product_key": "fwpkm_enabled"}


def _renamed(component: str, kind: str) -> dict[str, str]:
    """The keys that only have another name in the section of a component, with the names of its fields."""
    place = {"model": "model", "memory": f"model.memories[{kind}]"}.get(component, f"model.{component}")
    fields = registry.get(component, kind).Config.model_fields  # type: ignore[attr-defined]
    names = {key.name: key.place.removeprefix(f"{place}.") for key in SEED_KEYS if not key.note}
    return {key: field for key, field in names.items() if field in fields}


def _from_seed(component: str, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind} | {field: values[key] for key, field in _renamed(component, kind).items()}


def _to_seed(component: str, section: Any) -> dict[str, Any]:
    return {key: getattr(section, field) for key, field in _renamed(component, section.kind).items()}


def model_config_from_seed(
    flat: Mapping[str, Any], vocabulary_size: int | None = None, source: str = "config.json"
) -> Any:
    """Our model section, of the family `wavelet` or `multinodal`, for a flat configuration of the original.

    Keys that are no model options (the training recipe's) are ignored. Raises ConfigurationError for a missing
    required key and for everything that our own sections refuse.
    """
    missing = [key for key in REQUIRED if key not in flat]
    if missing:
        raise ConfigurationError(
            f"{source}: {', '.join(missing)} missing: a configuration of the original has {', '.join(REQUIRED)}"
        )
    values = {key.name: _value(key, flat, source) for key in SEED_KEYS}
    if values["mixer_transform"] not in TRANSFORMS:
        raise ConfigurationError(
            f"{source}: mixer_transform={shown(values['mixer_transform'])} is not known; one of {', '.join(TRANSFORMS)}"
        )
    transform = TRANSFORMS[values["mixer_transform"]]
    bypass = {"kind": "ema" if values["decompose_bypass_ema"] else "running_mean"}
    data = _from_seed("model", "multinodal" if values["multinodal_enabled"] else "wavelet", values) | {
        "vocabulary_size": vocabulary_size,
        "stable_parametrization": bool(values["stable_parametrization"]),
        "block": _from_seed("block", "wavelet", values),
        "wavelet": _wavelet(values),
        "transform": {"kind": transform},
        "mixer": _mixer(values),
        "bypass": bypass if values["decompose_bypass"] else None,
        "cross_window_state": values["decompose_bypass"] and values["decompose_bypass_cross_window"],
        "memories": _memories(values),
    }
    if values["looped_blocks"]:
        data |= {"layers": values["looped_blocks_count"], "stochastic_depth": 0.0}
    if values["multinodal_enabled"]:
        features = values["multinodal_features_per_cell"]
        data["width"] = values["multinodal_cell_dim"]
        data["features_per_cell"] = None if features is None or features < 1 else features
    width = data["width"]
    padded = registry.get("transform", transform).padded_width(width) if isinstance(width, int) else None  # type: ignore[attr-defined]
    data["block"]["projection"] = not (values["skip_proj_out"] and padded == width)
    return parse_model(data, source)


def _value(key: SeedKey, flat: Mapping[str, Any], source: str) -> Any:
    """What a flat configuration says under a key; null is as if it were absent."""
    value = flat.get(key.name)
    if value is None:
        return key.absent
    # What our sections refuse, they refuse by name; these are the types that the translation itself relies on.
    kinds = {bool: (bool, int), int: (int, float), float: (int, float)}
    wanted = kinds.get(type(key.absent), type(key.absent))
    if key.absent is not None and not isinstance(value, wanted):
        raise ConfigurationError(f"{source}: {key.name}={shown(value)} must be of the type of {key.absent!r}")
    return value


def reads_routing(values: Mapping[str, Any]) -> bool:
    """Whether the original's forward reads `scale_routing`: it has gates of a single mixer to feed."""
    depth, gate = values.get("mixer_depth", 1), values.get("use_mixer_gate", True)
    return bool(values.get("cross_scale_gating")) and bool(gate) and depth == 1


def _wavelet(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["wavelet_mode"] != "lifting":
        return {"kind": values["wavelet_mode"]}
    lifting = _from_seed("wavelet", "lifting", values)
    lifting["crawl"] = values["wavelet_crawl_k"] if values["wavelet_crawl"] else None
    lifting["level_scaling"] = values["stab_lifting_level_scaling"] or bool(values["stable_parametrization"])
    if values["lifting_linear_only"]:
        lifting |= {"network": "linear", "hidden_multiplier": 1, "dropout": 0.0}
    if not values["multi_basis_lifting"]:
        return lifting
    untied = lifting.pop("untied_reconstruction")
    bases = [lifting | {"initialization": initialization} for initialization in values["multi_basis_inits"]]
    return {"kind": "multi_basis", "bases": bases, "untied_reconstruction": untied}


def _mixer(values: Mapping[str, Any]) -> dict[str, Any]:
    deep = values["mixer_depth"] > 1
    mixer = _from_seed("mixer", "deep_gated_spectral" if deep else "gated_spectral", values) | {
        "gate": values["mixer_gate_activation"] if values["use_mixer_gate"] else None,
        "parametrization": "spectral_norm" if values["stab_spectral_norm"] else "direct",
    }
    if deep:
        return mixer | {"depth": values["mixer_depth"]}
    return mixer | {"routing": reads_routing(values), "widths": values["per_scale_mixer_widths"]}


def _memories(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    memories = []
    for kind, switch in MEMORIES.items():
        if values[switch]:
            memory = _from_seed("memory", kind, values)
            memories.append(memory | ({"expansion": values["mlp_expansion"]} if kind == "mlp" else {}))
    return memories


def seed_from_model_config(config: Any) -> dict[str, Any]:
    """The flat configuration of the original for a model section.

    Raises ConfigurationError naming the field that the original has no key for.
    """
    _expect("model.kind", config.kind, ("wavelet", "multinodal"))
    _expect("model.transform", config.transform.kind, TRANSFORMS.values())
    _expect("model.block", config.block.kind, ("wavelet",))
    flat = {key.name: key.absent for key in SEED_KEYS if key.name != "per_scale_mixer_widths"}
    flat |= _to_seed("model", config) | _to_seed("block", config.block)
    flat |= {
        "looped_blocks_count": config.layers,
        "stable_parametrization": config.stable_parametrization,
        "skip_proj_out": not config.block.projection,
        "mixer_transform": next(seed for seed, ours in TRANSFORMS.items() if ours == config.transform.kind),
        "decompose_bypass": config.bypass is not None,
    }
    if config.bypass is not None:
        _expect("model.bypass", config.bypass.kind, ("running_mean", "ema"))
        flat["decompose_bypass_ema"] = config.bypass.kind == "ema"
    flat |= _seed_wavelet(config.wavelet) | _seed_mixer(config.mixer) | _seed_memories(config.memories)
    if config.kind == "multinodal":
        flat |= {
            "multinodal_enabled": True,
            "multinodal_cell_dim": config.width,
            "multinodal_features_per_cell": config.features_per_cell or -1,
        }
    return flat


def _refuse(place: str, value: Any, instead: str) -> ConfigurationError:
    return ConfigurationError(f"{place}={value!r} has no counterpart in the original, which has {instead}")


def _expect(place: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise _refuse(place, value, " or ".join(known))


def _seed_wavelet(wavelet: Any) -> dict[str, Any]:
    _expect("model.wavelet", wavelet.kind, ("lifting", "haar", "multi_basis"))
    if wavelet.kind == "haar":
        return {"wavelet_mode": "haar"}
    bases = wavelet.bases if wavelet.kind == "multi_basis" else [wavelet]
    first = bases[0]
    for index, basis in enumerate(bases):
        if basis.model_copy(update={"initialization": first.initialization}) != first:
            raise _refuse(f"model.wavelet.bases[{index}]", basis, "bases that differ in nothing but initialization")
    flat = _to_seed("wavelet", first) | _to_seed("wavelet", wavelet)
    flat |= {
        "wavelet_mode": "lifting",
        "wavelet_crawl": first.crawl is not None,
        "wavelet_crawl_k": first.crawl or 3,
        "lifting_linear_only": first.network == "linear",
    }
    if wavelet.kind == "multi_basis":
        flat |= {"multi_basis_lifting": True, "multi_basis_inits": [basis.initialization for basis in bases]}
    return flat


def _seed_mixer(mixer: Any) -> dict[str, Any]:
    _expect("model.mixer", mixer.kind, ("gated_spectral", "deep_gated_spectral"))
    _expect("model.mixer.parametrization", mixer.parametrization, ("direct", "spectral_norm"))
    flat = _to_seed("mixer", mixer) | {
        "use_mixer_gate": mixer.gate is not None,
        "mixer_gate_activation": mixer.gate or "silu",
        "stab_spectral_norm": mixer.parametrization == "spectral_norm",
    }
    if mixer.kind == "deep_gated_spectral":
        return flat | {"mixer_depth": mixer.depth}
    return flat | {"cross_scale_gating": mixer.routing, "per_scale_mixer_widths": mixer.widths}


def _seed_memories(memories: list[Any]) -> dict[str, Any]:
    kinds = [memory.kind for memory in memories]
    if kinds != [kind for kind in MEMORIES if kind in kinds]:
        raise _refuse("model.memories", kinds, f"at most one of each of {', '.join(MEMORIES)}, in that order")
    flat: dict[str, Any] = {}
    for memory in memories:
        flat |= _to_seed("memory", memory)
        flat[MEMORIES[memory.kind]] = memory.expansion if memory.kind == "mlp" else True
    return flat
