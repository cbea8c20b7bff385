"""The run configuration: sections `model`, `data` and `train`, presets, files and `--set` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from wavelet_core.config import ComponentOf, ConfigurationError, Section, parse
from wavelet_core.configuration_files import locate, read_file
from wavelet_core.first_format import convert_config
from wavelet_core.messages import shortened, shown
from wavelet_train import PRESETS
from wavelet_train.data import DataConfig
from wavelet_train.parallel import Parallelism
from wavelet_train.precision import Precision
from wavelet_train.weight_average import WeightAverageConfig

# What a checkpoint's config.json holds besides the sections of a run.
CHECKPOINT_KEYS = ("format_version", "components", "format", "quantization", "step")


class TrainConfig(Section):
    """How a model is trained, checked and saved (docs/model.md, section 8 has the published recipe)."""

    seed: int = Field(0, ge=0, lt=1 << 63, description="decides initial weights, dropout and the order of windows")
    device: str = Field("auto", description="auto (an accelerator if there is one), cpu, cuda, cuda:1, mps, ...")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="processor threads to compute with; null: OMP_NUM_THREADS of the environment, or else chosen when "
        "the run starts, by the work of a step and the processors that are idle",
    )
    precision: Precision = Field(
        "auto",
        description="type of matrix products in training and validation: auto (bfloat16 where the device multiplies "
        "it natively, else float32), float32, bfloat16, float16 (with loss scaling); weights stay float32",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="compile the loss with torch.compile, which takes a minute or two: true, false, or auto (where the "
        "steps to come save more time than that, as measured on this machine; a run keeps its choice)",
    )

    epochs: float = Field(
        1.0, gt=0, description="length of training: an epoch is (training tokens) // (tokens per optimizer step) steps"
    )
    steps: int | None = Field(None, ge=1, description="length of training in optimizer steps; null goes by epochs")
    parallel: Parallelism = Field(
        "auto",
        description="how the processes that torchrun starts share the model: ddp (each has all of it; what auto is) or "
        "fsdp (each keeps a part of every parameter); one process has all of it",
    )
    batch_size: int = Field(8, ge=1, description="windows of model.context_length tokens in one forward pass")
    accumulation: int = Field(1, ge=1, description="forward passes whose gradients are averaged in an optimizer step")
    order: Literal["random", "shuffled", "documents", "contiguous"] | None = Field(
        None,
        description="windows of the text: at random positions; without overlap and shuffled, so that an epoch reads "
        "every token once; likewise, but beginning with a document or going on with it, and predicting nothing behind "
        "its end; or each after the one before, with the streaming state carried. null: random, documents for a data "
        "set of examples, contiguous for a model with cross_window_state",
    )
    reset_at_documents: bool = Field(
        False, description="nothing crosses from one document of a window to the next: each is read from silence"
    )

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    optimizer: Annotated[Any, ComponentOf("optimizer", "adamw")] = Field(
        {"kind": "adamw"}, description="what turns gradients into updates"
    )
    schedule: Annotated[Any, ComponentOf("schedule", "cosine")] = Field(
        {"kind": "cosine"}, description="the learning rate over the optimizer steps"
    )
    gradient_clipping: float | None = Field(
        1.0, gt=0, description="gradients with a larger norm over all parameters are scaled to it; null: never"
    )
    most_skipped: int = Field(
        5,
        ge=1,
        description="optimizer steps in a row whose loss or gradient is not finite, which are skipped, until the run "
        "stops and says where that begins",
    )
    weight_average: WeightAverageConfig | None = Field(
        None,
        description="an exponential average of the weights, which validations then score and best/ then holds; "
        "null: none",
    )

    log_every: int = Field(10, ge=1, description="optimizer steps between two lines of metrics.jsonl")
    log_gradient_norms: bool = Field(
        True, description="lines of metrics.jsonl also say the norm of the gradient in every part of the model"
    )
    loggers: list[Annotated[Any, ComponentOf("logger")]] = Field(
        [], description="what else is given every line of metrics.jsonl"
    )
    validate_every: int = Field(500, ge=1, description="optimizer steps between validations; the last step has one too")
    validation_tokens: int | None = Field(
        None, ge=1, description="validations during training read about this many tokens at most; null: the whole split"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="optimizer steps between saves of last/; null saves at validations only"
    )
    keep_checkpoints: int = Field(
        0, ge=0, description="saves of last/ that are kept in steps/ too, the newest ones; best/ is always kept"
    )
    keep_every: int | None = Field(
        None,
        ge=1,
        description="saves of last/ whose step is a multiple of this are kept in steps/ for good; null: none",
    )
    background_saves: bool | None = Field(
        None,
        description="training goes on while a checkpoint is written, from a copy in memory; null: on accelerators",
    )
    final_stride: int | None = Field(
        None,
        ge=1,
        description="tokens that windows advance by when the best checkpoint is evaluated on the whole validation "
        "split after training; null is half of model.context_length",
    )
    compare_with_xz: bool = Field(
        False, description="after training, report what `xz -9e` needs for the validation text next to the model"
    )


class RunConfig(Section):
    """A whole run, as in a configuration file."""

    description: str = Field("", description="what the run is for, in a sentence; `wavelet config list` shows it")
    model: Annotated[Any, ComponentOf("model", "wavelet")] = Field(
        {"kind": "wavelet"}, description="what the model computes; `kind` names its family"
    )
    data: DataConfig = Field(default_factory=DataConfig, description="what it is trained on")
    train: TrainConfig = Field(default_factory=TrainConfig, description="how it is trained")


def list_presets() -> dict[str, str]:
    """The presets that ship with this package: name -> description, sorted by name."""
    return {path.stem: read_file(path).get("description", "") for path in sorted(PRESETS.glob("*.yaml"))}


def load_run_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run configuration of a preset or a YAML or JSON file, with overrides like `train.lr=0.02` applied.

    A checkpoint's config.json is a configuration file too.

    Raises ConfigurationError for an unknown preset, a missing or unreadable file, bad YAML or JSON (with the line), and
    fields that are unknown or do not fit.
    """
    return run_config(read_file(locate(source, PRESETS)), overrides, str(source))


def is_seed_config(data: Mapping[str, Any]) -> bool:
    """Whether the content of a file is a flat configuration of the original WaveletLM."""
    return "model" not in data and {"C", "layers", "levels"} <= data.keys()


def run_config(data: dict[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    """The run configuration for a file's content, which is used up; see `load_run_config` for what it raises."""
    if is_seed_config(data):
        raise ConfigurationError(
            f"{source} is a flat configuration of the original WaveletLM, which wavelet-cli translates: use "
            "`wavelet train` or `wavelet config show` with it, and `wavelet import` for a checkpoint"
        )
    if isinstance(data.get("model"), dict) and "multinodal" in data["model"]:
        data = convert_config(data)  # of a run or a checkpoint of format version 1
    for bookkeeping in CHECKPOINT_KEYS:
        data.pop(bookkeeping, None)
    for override in overrides:
        apply_override(data, override)
    return parse(RunConfig, data, str(source))


def dump(config: RunConfig) -> str:
    """The full resolved configuration as YAML; loading it gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply one `path=value` to configuration data, in place.

    The path is dotted, with numbers for list entries (`model.memories.0.expansion=8`); the value is YAML. Naming
    another `kind` drops the fields of the component that was there.
    """
    where = f"--set {shortened(override)}"
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigurationError(f"{where}: expected a dotted path and a value, as in train.lr=0.02")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{where}: the value {shown(text)} is not YAML") from error
    except RecursionError:
        raise ConfigurationError(f"{where}: the value is nested too deeply") from None

    node: Any = data
    default: Any = RunConfig().model_dump(mode="json")
    for key in keys[:-1]:
        index = _index(node, key, where)
        default = default.get(key) if isinstance(default, dict) else None
        child = node[index] if isinstance(node, list) else node.get(index)
        if child is None:
            child = default if isinstance(default, list) else {}
        elif isinstance(child, str):
            child = {"kind": child}
        elif not isinstance(child, dict | list):
            raise ConfigurationError(f"{where}: {shortened(key)} is {shown(child)}, which has no fields")
        node[index] = child
        node = child
    index = _index(node, keys[-1], where)
    if index == "kind" and node.get("kind", value) != value:
        node.clear()
    node[index] = value


def _index(node: dict[str, Any] | list[Any], key: str, where: str) -> Any:
    """What `key` means inside a mapping or a list."""
    if isinstance(node, dict):
        return key
    if key.isdigit() and int(key) < len(node):
        return int(key)
    raise ConfigurationError(f"{where}: {shown(key)} is not an entry of a list of {len(node)}; entries count from 0")
