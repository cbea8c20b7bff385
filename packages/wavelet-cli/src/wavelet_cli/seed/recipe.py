"""The original's flat `config.json` as a whole run: its data and its training recipe besides its model."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from wavelet_cli.seed.configuration import SEED_KEYS, SeedKey, model_config_from_seed
from wavelet_cli.seed.tokenizer import SENTENCEPIECE_NAME, TIKTOKEN_SIZES
from wavelet_core.config import ConfigurationError
from wavelet_core.configuration_files import read_file
from wavelet_train import PRESETS
from wavelet_train.run_config import apply_override

RECIPE_KEYS = (
    SeedKey("dataset", "data.dataset", None, "wikitext-103, wikitext-2, pg19 or owner/name of the hub; else to be set"),
    SeedKey("tokenizer", "data.tokenizer", "auto", f"auto is {SENTENCEPIECE_NAME} for pg19, and gpt2 for all others"),
    SeedKey("lr", "train.lr", None, "a file without it has no recipe: all of train then has its defaults"),
    SeedKey("min_lr", "train.schedule.final_lr", 0.0),
    SeedKey("warmup_fraction", "train.schedule.warmup", 0.3),
    SeedKey("optimizer", "train.optimizer.kind", "Adagrad", "Adagrad or AdamW; another is to be set"),
    SeedKey("optimizer_eps", "train.optimizer.eps", 2e-13, "1e-8 where absent with AdamW"),
    SeedKey("weight_decay", "train.optimizer.weight_decay", 0.0, "0.01 where absent with AdamW"),
    SeedKey("grad_clip", "train.gradient_clipping", 1.0, "0 gives null"),
    SeedKey("use_amp", "train.precision", True, "false gives float32"),
    SeedKey("amp_dtype", "train.precision", "fp16", "fp16 gives float16, bf16 gives bfloat16"),
    SeedKey("seed", "train.seed", 0),
    SeedKey("epochs", "train.epochs", 1),
    SeedKey("micro_batch_size", "train.batch_size", 8),
    SeedKey("grad_accum", "train.accumulation", 1),
    SeedKey("eval_interval", "train.validate_every", 500),
    SeedKey("checkpoint_interval_steps", "train.checkpoint_every", None),
)

# What has no bearing on the trained model: where files go, how fast it is, and what is done afterwards.
OF_NO_BEARING = {
    *("out_dir", "compile", "compile_mode", "allow_tf32", "skip_warmup_saves", "benchmark_only", "benchmark_run_dir"),
    *("generation_prompt", "generation_max_context", "temperature", "num_new_tokens", "top_p", "repetition_penalty"),
}
SWITCHED_OFF = (None, False, 0, "", "off", "none")


def run_from_seed(
    flat: Mapping[str, Any], overrides: Sequence[str], source: str, model_only: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """One of our configuration files for a flat one, with `--set` overrides applied, and remarks for a person.

    model_only: only the model is wanted, so that the data need not be known. Raises ConfigurationError for what the
    original names and nothing here corresponds to, unless an override says what to take instead.
    """
    values = {key.name: flat.get(key.name, key.absent) for key in RECIPE_KEYS}
    sections = {"data": _data(values), "train": {} if values["lr"] is None else _train(flat, values)}
    run = {"model": model_config_from_seed(flat, source=source).model_dump(mode="json"), **sections}
    own = copy.deepcopy(run["data"])
    for override in overrides:
        apply_override(run, override)
    if not all(isinstance(section, dict) for section in run.values()):
        return run, []  # which is refused when it is parsed
    if run["data"].get("dataset") != own.get("dataset"):
        run["data"].pop("canonical_words", None)
    if run["model"].get("vocabulary_size") is None and run["data"].get("tokenizer") == own.get("tokenizer"):
        run["model"]["vocabulary_size"] = TIKTOKEN_SIZES.get(own.get("tokenizer", {}).get("encoding"))
    wanted = {"dataset": "data", "tokenizer": "data"} | ({} if values["lr"] is None else {"optimizer": "train"})
    unknown = [name for name, section in wanted.items() if not run[section].get(name)]
    if unknown and not model_only:
        name = unknown[0]
        found = f"{name}={reprlib.repr(values[name])} is not known here" if values[name] else f"it names no {name}"
        example = {"dataset": "'{kind: text, path: books}'", "tokenizer": "byte_pair", "optimizer": "adamw"}[name]
        raise ConfigurationError(
            f"{source} is a configuration of the original, and {found}: say what to take instead, for instance with "
            f"--set {wanted[name]}.{name}={example}"
        )
    known = {key.name for key in (*SEED_KEYS, *RECIPE_KEYS)} | OF_NO_BEARING
    left_out = [key for key in flat if key not in known and key[:2] != "__" and flat[key] not in SWITCHED_OFF]
    remarks = [f"{source}: nothing here corresponds to {', '.join(left_out)}: left out"] if left_out else []
    if values["lr"] is None and not model_only:
        remarks.append(f"{source} has no training recipe: `train` has our defaults")
    return run, remarks


def _data(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data`, without what is not known."""
    name = values["dataset"]
    preset = {"wikitext-103": "wikitext-103", "wikitext-2": "wikitext-103", "pg19": "pg-19"}.get(str(name))
    data: dict[str, Any] = read_file(PRESETS / f"{preset}.yaml")["data"] if preset else {}
    if name == "wikitext-2":
        data["dataset"]["name"] = "wikitext-2-raw-v1"
    elif preset is None and isinstance(name, str) and name.count("/") == 1:
        data["dataset"] = {"kind": "hugging_face", "path": name, "join": "\n\n"}
    tokenizer = str(values["tokenizer"])
    if tokenizer == "auto":
        tokenizer = SENTENCEPIECE_NAME if name == "pg19" else "gpt2"
    data["tokenizer"] = None
    if tokenizer == SENTENCEPIECE_NAME:
        data["tokenizer"] = read_file(PRESETS / "pg-19.yaml")["data"]["tokenizer"]
    elif tokenizer in TIKTOKEN_SIZES:
        data["tokenizer"] = {"kind": "tiktoken", "encoding": tokenizer}
    return {field: value for field, value in data.items() if value is not None}


def _train(flat: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `train`, without an optimizer that is not known."""
    amp = "float16" if values["amp_dtype"] == "fp16" else "bfloat16"
    train = {
        "lr": values["lr"],
        "schedule": {"kind": "cosine", "warmup": values["warmup_fraction"], "final_lr": values["min_lr"]},
        "gradient_clipping": values["grad_clip"] or None,
        "precision": amp if values["use_amp"] else "float32",
        "seed": values["seed"],
        "epochs": values["epochs"],
        "batch_size": values["micro_batch_size"],
        "accumulation": values["grad_accum"],
        "validate_every": values["eval_interval"],
        "checkpoint_every": values["checkpoint_interval_steps"],
    }
    if values["optimizer"] == "Adagrad":
        fields = {"eps": values["optimizer_eps"], "weight_decay": values["weight_decay"]}
        train["optimizer"] = {"kind": "adagrad", **fields}
    elif values["optimizer"] == "AdamW":
        fields = {"eps": flat.get("optimizer_eps", 1e-8), "weight_decay": flat.get("weight_decay", 0.01)}
        train["optimizer"] = {"kind": "adamw", "beta2": 0.999, "decayed": "all", **fields}
    return train
