"""Typed configuration: component configurations, the model's shape, and the model section.

Every section refuses unknown fields. Component fields are resolved through the registry, so a plugin's fields are
validated like our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from wavelet_core.messages import shortened, shown
from wavelet_core.registry import nearest, registry


class ConfigurationError(ValueError):
    """A configuration that cannot be used; the message names the field, the value and the remedy."""


def _error_at(title: str, location: tuple[int | str, ...], value: Any, message: str) -> PydanticValidationError:
    """A validation error at a place inside the section being validated."""
    error = PydanticCustomError("configuration", "{message}", {"message": message})
    detail = InitErrorDetails(type=error, loc=location, input=value)
    return PydanticValidationError.from_exception_data(title, [detail])


class Section(BaseModel):
    """A part of a configuration: immutable, no unknown fields, defaults validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    known = list(cls.model_fields)
                    message = f"unknown field{nearest(str(key), known)} Known fields: {', '.join(known)}"
                    raise _error_at(cls.__name__, (str(key),), data[key], message)
        return data


class ComponentConfig(Section):
    """Base of every component's nested `Config`. Subclasses pin `kind` to a literal: the component's name."""

    kind: str

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError when this component does not fit the rest of the model; name both fields."""

    def components(self) -> Iterator[tuple[tuple[str | int, ...], str, ComponentConfig]]:
        """Every component configured inside this one, as (place, kind, configuration)."""
        return iter(())


class ComponentOf:
    """Annotation of a field that holds a component of one kind.

    Accepts the component's name, a mapping with `kind` (which may be left out where there is a default), or a
    component configuration.
    """

    _described: ClassVar[set[str]] = set()

    def __init__(self, kind: str, default: str | None = None):
        self.kind = kind
        self.default = default

    def resolve(self, value: Any) -> ComponentConfig:
        if isinstance(value, ComponentConfig):
            registry.get(self.kind, value.kind)
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"must be the name of a {self.kind} or a mapping with `kind`, not {shown(value)}")
        name = value.get("kind", self.default)
        if not isinstance(name, str):
            raise ValueError(f"needs `kind`, one of: {', '.join(registry.names(self.kind))}")
        config_class = registry.get(self.kind, name).Config  # type: ignore[attr-defined]
        resolved: ComponentConfig = config_class.model_validate({**value, "kind": name})
        return resolved

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: (
                value.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults) | {"kind": value.kind}
            ),
            info_arg=True,
        )
        return core_schema.no_info_plain_validator_function(self.resolve, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if self.kind in self._described:  # a component that holds others of its kind
            return {"type": ["object", "string"]}
        classes = [registry.get(self.kind, name).Config for name in registry.names(self.kind)]  # type: ignore[attr-defined]
        self._described.add(self.kind)
        try:
            return {"anyOf": [handler(config.__pydantic_core_schema__) for config in classes] + [{"type": "string"}]}
        finally:
            self._described.remove(self.kind)


@dataclass(frozen=True)
class ModelShape:
    """The sizes that components are built for.

    width: C, channels of the residual stream. padded_width: P, channels inside the wavelet and the mixer; 0 means
    the next power of two. levels: L, wavelet levels (L + 1 scales). layers: blocks in the model.
    """

    width: int
    levels: int
    padded_width: int = 0
    layers: int = 1

    def __post_init__(self) -> None:
        if not self.padded_width:
            object.__setattr__(self, "padded_width", next_power_of_two(self.width))

    @property
    def scales(self) -> int:
        """S = L + 1: the approximation and one detail per level, coarse to fine."""
        return self.levels + 1


def next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class LanguageModelConfig(ComponentConfig):
    """What the configuration of every model family holds; a family's own `Config` adds its fields."""

    vocabulary_size: int | None = Field(
        None, ge=1, description="V, entries in the vocabulary; null takes the tokenizer's size"
    )
    context_length: int = Field(
        256, ge=1, description="T, tokens in a training window; also what context policies `hop` and `window` rebuild"
    )

    @property
    def vocabulary(self) -> int:
        """V, once it is known. Raises ConfigurationError before that."""
        if self.vocabulary_size is None:
            raise ConfigurationError("model.vocabulary_size is not set; give a number, or the size of your tokenizer")
        return self.vocabulary_size

    def with_vocabulary(self: AnyModelConfig, size: int) -> AnyModelConfig:
        """The configuration for a tokenizer with `size` tokens.

        Raises ConfigurationError when `vocabulary_size` is given and too small; a larger one only pads.
        """
        if self.vocabulary_size is None:
            return self.model_copy(update={"vocabulary_size": size})
        if self.vocabulary_size < size:
            raise ConfigurationError(
                f"model.vocabulary_size={self.vocabulary_size} is smaller than the tokenizer's {size} tokens "
                "(data.tokenizer); use null to take the tokenizer's size"
            )
        return self


AnyModelConfig = TypeVar("AnyModelConfig", bound=LanguageModelConfig)


class ModelConfig(LanguageModelConfig):
    """Everything that decides what a WaveletLM computes (docs/model.md)."""

    kind: Literal["wavelet"] = "wavelet"

    width: int = Field(256, ge=1, description="C, channels of the residual stream")
    layers: int = Field(2, ge=1, description="blocks applied one after the other")
    levels: int = Field(
        5, ge=0, le=30, description="L, wavelet levels; level k looks 2^k positions back; 0: no wavelet"
    )

    tied_embedding: bool = Field(False, description="the head uses the token embedding's weights")
    embedding_scaling: bool = Field(False, description="multiply embeddings by sqrt(C)")
    embedding_dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability after the embedding")
    head_dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability before the head")
    embedding_std: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="standard deviation of the initial token embeddings; null: 1/sqrt(C)",
    )
    head_std: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="standard deviation of the head's initial weights; null: uniform up to 1/sqrt(C), or the tied ones",
    )
    logit_soft_cap: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="c, logits z become c tanh(z / c); null leaves them"
    )
    bigram_rows: int | None = Field(
        None,
        ge=1,
        description="rows of a table, starting at zero, whose row for a token and the one before it, by a hash, is "
        "added to the token's embedding; null: none",
    )

    shared_block: bool = Field(False, description="one block applied `layers` times instead of `layers` blocks")
    shared_wavelet: bool = Field(True, description="all blocks share one wavelet's parameters")
    loop_iterations: int = Field(
        1, ge=1, description="passes of the whole stack over its own output; the training loss averages the passes"
    )
    stochastic_depth: float = Field(
        0.0, ge=0, lt=1, description="in training, block l of n is skipped with probability stochastic_depth * l / n"
    )
    gradient_checkpointing: bool | Literal["lifting"] = Field(
        False,
        description="recompute each block in the backward pass: the same numbers, less memory, more time; `lifting` "
        "recomputes only the levels of lifting wavelets",
    )
    cross_window_state: bool = Field(
        False,
        description="carry the last block's bypass mean into the next window of the same text as the first "
        "block's previous mean",
    )
    stable_parametrization: bool = Field(
        False,
        strict=True,
        description="turns on embedding_scaling, block.projection_scaling, wavelet.level_scaling, "
        "mixer.noise_scaling, mixer.parametrization: spectral_norm and every MLP's output_scaling",
    )

    block: Annotated[Any, ComponentOf("block", "wavelet")] = Field(
        {"kind": "wavelet"}, description="the block that is stacked"
    )
    wavelet: Annotated[Any, ComponentOf("wavelet", "lifting")] = Field(
        {"kind": "lifting"}, description="the causal wavelet over positions"
    )
    transform: Annotated[Any, ComponentOf("transform", "walsh_hadamard")] = Field(
        {"kind": "walsh_hadamard"}, description="the orthogonal transform over channels around the mixer"
    )
    mixer: Annotated[Any, ComponentOf("mixer", "gated_spectral")] = Field(
        {"kind": "gated_spectral"}, description="the channel mixer of every scale"
    )
    bypass: Annotated[Any, ComponentOf("bypass", "running_mean")] | None = Field(
        {"kind": "running_mean"}, description="the long-range mean added to every scale; null for none"
    )
    memories: list[Annotated[Any, ComponentOf("memory")]] = Field(
        [{"kind": "mlp"}],
        description="what reads the block's output in parallel and is summed with learned scalars",
    )

    @property
    def shape(self) -> ModelShape:
        """The sizes that components are built for."""
        transform = registry.get("transform", self.transform.kind)
        return ModelShape(
            width=self.width,
            levels=self.levels,
            padded_width=transform.padded_width(self.width),  # type: ignore[attr-defined]
            layers=self.layers,
        )

    def components(self) -> Iterator[tuple[tuple[str | int, ...], str, ComponentConfig]]:
        for kind in ("block", "wavelet", "transform", "mixer", "bypass"):
            config = getattr(self, kind)
            if config is not None:
                yield (kind,), kind, config
        for index, config in enumerate(self.memories):
            yield ("memories", index), "memory", config

    @model_validator(mode="before")
    @classmethod
    def _apply_stable_parametrization(cls, data: Any) -> Any:
        if not (isinstance(data, Mapping) and data.get("stable_parametrization") is True):
            return data

        def switch_on(kind: str, component: Any, default: str | None, **options: Any) -> Any:
            try:
                resolved: Any = ComponentOf(kind, default).resolve(component)
            except ValueError:
                return component  # for the field's own validation to report, with its place
            if "bases" in type(resolved).model_fields:
                options = {"bases": [basis.model_copy(update=options) for basis in resolved.bases]}
            known = {name: value for name, value in options.items() if name in type(resolved).model_fields}
            return resolved.model_copy(update=known)

        data = dict(data) | {"embedding_scaling": True}
        data["block"] = switch_on("block", data.get("block", {}), "wavelet", projection_scaling=True)
        data["wavelet"] = switch_on("wavelet", data.get("wavelet", {}), "lifting", level_scaling=True)
        mixer = {"noise_scaling": True, "parametrization": "spectral_norm"}
        data["mixer"] = switch_on("mixer", data.get("mixer", {}), "gated_spectral", **mixer)
        memories = data.get("memories", cls.model_fields["memories"].default)
        if isinstance(memories, list):
            data["memories"] = [switch_on("memory", memory, None, output_scaling=True) for memory in memories]
        return data

    @model_validator(mode="after")
    def _check_together(self) -> ModelConfig:
        for place, _, config in self.components():
            try:
                config.check(self)
            except ValueError as error:
                raise _error_at(type(self).__name__, place, config, str(error)) from error
        if self.cross_window_state and self.bypass is None:
            raise ValueError("cross_window_state needs a bypass, but model.bypass is null; set one of the two")
        if self.head_std is not None and self.tied_embedding:
            raise ValueError("head_std cannot be used with tied_embedding: the head's weights are the embedding's")
        if self.stochastic_depth and self.shared_block:
            raise ValueError("stochastic_depth cannot be used with shared_block: a looped block is never skipped")
        return self


AnySection = TypeVar("AnySection", bound=BaseModel)


def parse(section: type[AnySection], data: Any, source: str = "configuration") -> AnySection:
    """Validate `data` as `section`.

    Raises ConfigurationError with one line per mistake: where (dotted path), what was found, what is wanted.
    """
    try:
        return section.model_validate(data)
    except PydanticValidationError as error:
        raise ConfigurationError(describe(error, source)) from None
    except RecursionError:
        raise ConfigurationError(f"{source} is nested too deeply") from None


def parse_model(data: Any, source: str = "configuration") -> LanguageModelConfig:
    """Validate a model section as the configuration of the family that its `kind` names, `wavelet` by default.

    Raises what `parse` raises, and RegistryError for an unknown family.
    """
    kind = data.get("kind", "wavelet") if isinstance(data, Mapping) else "wavelet"
    if not isinstance(kind, str):
        raise ConfigurationError(f"{source}.kind: must be the name of a model family, not {shown(kind)}")
    config: LanguageModelConfig = parse(registry.get("model", kind).Config, data, source)  # type: ignore[attr-defined]
    return config


def describe(error: PydanticValidationError, source: str = "configuration") -> str:
    """One line per mistake of a validation error, for people."""
    lines = []
    for mistake in error.errors():
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in mistake["loc"]).lstrip(".")
        message = mistake["msg"].removeprefix("Value error, ")
        value = "" if isinstance(mistake["input"], (Mapping, BaseModel)) else f" (got {shown(mistake['input'])})"
        lines.append(f"{source}: {shortened(place) + ': ' if place else ''}{message}{value}")
    return "\n".join(lines)
