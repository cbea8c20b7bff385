"""Our models, of every family, as a causal language model of transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from wavelet_ecosystem.padding import read_texts, text_starts, without_first
from wavelet_ecosystem.transformers_configuration import WaveletConfig

HUB_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")
# What AutoModelForCausalLM hands on of what it has settled itself.
SETTLED = ("adapter_kwargs", "trust_remote_code", "_from_auto", "_from_pipeline", "_commit_hash")


class WaveletForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model of ours, `model`, that transformers generates from and trains.

    Weights have the names that they have in our checkpoints. Left padding is not read; texts of a batch that begin at
    different places are read one group after another, so that all of them give what each would give alone.
    """

    config_class = WaveletConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    _is_stateful = True

    def __init__(self, config: WaveletConfig, model: nn.Module | None = None):
        from wavelet_core.config import parse_model
        from wavelet_core.language_model import build_model

        super().__init__(config)
        self.model: Any = build_model(parse_model(config.model, "config.model")) if model is None else model
        self._register_state_dict_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: modules come initialised."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        """The table of the family, where it has one of this name."""
        embedding: nn.Module = self.model.embedding
        return embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, T, V) of tokens (B, T), after what the cache has read.

        attention_mask: (B, T) or (B, tokens read before + T), 0 for padding. With a cache it must be on the left.
        cache: a StateCache of an earlier output; `use_cache` makes a silent one. labels: (B, T), shifted by the loss;
        -100 is left out, and so is the first token after padding. logits_to_keep: so many of the last positions, or
        these ones; 0 for all.
        """
        from wavelet_ecosystem.transformers_cache import StateCache

        if use_cache and cache is None:
            cache = StateCache(self.model, len(input_ids))
        starts = text_starts(input_ids, attention_mask, cache is not None)
        model, state = self.model, None
        if cache is not None:
            state = cache.advance(input_ids.shape[1])
            model = model if torch.is_grad_enabled() else cache.model
        if isinstance(logits_to_keep, int) and not logits_to_keep:
            logits = read_texts(model, input_ids, starts, state)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = model.head(read_texts(model.hidden, input_ids, starts, state)[:, kept])
        loss = None
        if labels is not None:
            labels = without_first(labels, starts)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
            )
        output = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)
        return output if return_dict or return_dict is None else output.to_tuple()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: WaveletConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        **options: Any,
    ) -> WaveletForCausalLM:
        """A checkpoint directory of ours, or one of the Hugging Face hub, in evaluation mode.

        dtype: of the weights; as stored by default, and for "auto". device_map: one device, or "auto". Files are
        verified, as `load_checkpoint` does. Options of transformers that mean nothing here are refused.
        """
        from wavelet_core.checkpoint import load_checkpoint, locate_checkpoint
        from wavelet_ecosystem.weight_type import weight_type

        hub = {name: options.pop(name) for name in HUB_OPTIONS if options.get(name) is not None}
        directory = locate_checkpoint(pretrained_model_name_or_path, **hub)
        for name in (*HUB_OPTIONS, *SETTLED):
            options.pop(name, None)
        if dtype is None:
            dtype = options.pop("torch_dtype", None)
        if config is None:
            config, options = WaveletConfig.from_pretrained(directory, return_unused_kwargs=True, **options)
        if refused := _given(options):
            raise ValueError(f"{cls.__name__}.from_pretrained does not take {refused}")
        model = load_checkpoint(directory, weight_type(dtype), _device(device_map))
        config.dtype = next(model.parameters()).dtype
        loaded = cls(config, model).eval()
        loaded.generation_config = _generation_config(directory)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str | None = None,
        **options: Any,
    ) -> None:
        """Write config.json and model.safetensors, which our own commands read too, beside what else is there.

        What config.json told of an earlier training is left out.

        state_dict: the weights, instead of the model's own. max_shard_size: of no effect, the weights are one file.
        """
        from wavelet_core.atomic_files import write_atomically
        from wavelet_core.checkpoint import CONFIG_FILE, MODEL_PARTS, WEIGHTS_FILE, config_content, named_tensors
        from wavelet_core.digests import write_digests
        from wavelet_core.tensor_files import check_finite, save_tensors

        directory = Path(save_directory)
        if refused := _given(options):
            raise ValueError(f"{type(self).__name__}.save_pretrained does not take {refused}")
        if not is_main_process:
            return
        weights = named_tensors(self.model)
        if state_dict is not None:
            weights = {name: state_dict[name] for name in weights}
        check_finite(f"{directory} is not saved", weights)
        config = json.dumps(config_content(self.model, {}), indent=2) + "\n"
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(weights, directory / WEIGHTS_FILE, {"format": "pt"})
        write_atomically(directory / CONFIG_FILE, lambda file: file.write_text(config, "utf-8"))
        self.generation_config.save_pretrained(directory)
        write_digests(directory, MODEL_PARTS)


def _given(options: Mapping[str, Any]) -> str:
    """The names of the options that are set to something."""
    return ", ".join(name for name, value in options.items() if value not in (None, False))


def _without_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        state[prefix + name.removeprefix(f"{prefix}model.")] = state.pop(name)


def _with_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}model.{name.removeprefix(prefix)}"] = state.pop(name)


def _device(device_map: Any) -> torch.device:
    """The one device that a `device_map` names."""
    from wavelet_core.devices import resolve_device

    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise ValueError("device_map: a model is loaded on one device; name it, as device_map='cuda'")
        device_map = device_map[""]
    if isinstance(device_map, int):
        device_map = f"{resolve_device('auto', 'device_map').type}:{device_map}"
    return resolve_device(str(device_map or "cpu"), "device_map")


def _generation_config(directory: Path) -> GenerationConfig:
    """What the directory says of generation; by default a text ends with the tokenizer's end of text."""
    from wavelet_core.tensor_files import CheckpointError
    from wavelet_core.tokenizers import load_tokenizer

    if (directory / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(directory)
    try:
        end = load_tokenizer(directory, verify=False).end_of_text
    except (CheckpointError, ValueError):
        end = None
    return GenerationConfig(eos_token_id=end, pad_token_id=end)
