"""What the options of `wavelet generate` mean: prompts, settings, and the model made ready."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import click
import torch

from wavelet_cli.output import warning_style
from wavelet_cli.quantized_model import load_model
from wavelet_cli.sampler_presets import STRATEGIES, in_order
from wavelet_core.checkpoint import locate_checkpoint, read_config
from wavelet_core.config import ConfigurationError, parse
from wavelet_core.devices import resolve_device
from wavelet_core.generation import (
    CompiledStepError,
    DecodingSession,
    GenerationSettings,
    ModelDrafts,
    NgramDrafts,
    load_steps,
)
from wavelet_memory import learn_while_reading


def read_prompts(options: dict[str, Any]) -> list[str]:
    """The prompts from wherever they are given; one empty prompt when there is none."""
    text, file = options["text"], options["prompt_file"]
    prompts = list(options["prompts"])
    if sum((text is not None, file is not None, bool(prompts))) > 1:
        raise click.UsageError("give the prompt in one way: TEXT, - (standard input), --prompt or --prompt-file")
    if text == "-":
        file = "-"
    elif text is not None:
        prompts = [text]
    if file is None:
        return prompts or [""]
    name = "standard input" if file == "-" else file
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise click.UsageError(f"cannot read the prompt from {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"the prompt in {name} is not UTF-8 text: byte {error.start} is {error.reason}"
        ) from error
    return [text.removesuffix("\n")]


def generation_settings(options: dict[str, Any]) -> GenerationSettings:
    """The settings that the options ask for."""
    chosen = copy.deepcopy(STRATEGIES) if options["strategies"] else {}
    if options["entropy_adaptive"]:
        if options["temperature"] is not None:
            raise click.UsageError(
                "--entropy-adaptive chooses the temperature itself: leave out --temperature, or set --entropy-t-max"
            )
        chosen.setdefault("entropy_adaptive", {})
    elif options["temperature"] is not None:
        chosen.pop("entropy_adaptive", None)
        chosen["temperature"] = {"temperature": options["temperature"]}
    for option, field in (("entropy_t_min", "minimum"), ("entropy_t_max", "maximum")):
        if options[option] is not None:
            if "entropy_adaptive" not in chosen:
                raise click.UsageError(f"--{option.replace('_', '-')} needs --entropy-adaptive")
            chosen["entropy_adaptive"][field] = options[option]
    if options["wavelet_coherence"]:
        chosen["wavelet_coherence"] = {}
    for name, field in (("repetition_penalty", "penalty"), ("top_k", "k"), ("top_p", "p"), ("min_p", "p")):
        if options[name] is not None:
            chosen[name] = {field: options[name]}
    if options["top_k"] == 0:
        del chosen["top_k"]
    if not options["fwpkm_inference_updates"]:
        for name in ("fwpkm_update_lr", "fwpkm_chunk_size"):
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} needs --fwpkm-inference-updates")
    if options["ptq8"] and options["recipe"] is not None:
        raise click.UsageError("--ptq8 is --quantize int8: give one of the two")
    search = (("candidates", options["lookahead_k"]), ("depth", options["lookahead_depth"]))
    content = {
        "tokens": options["num_tokens"],
        "samplers": [*in_order(chosen), *options["samplers"]],
        "context": options["context"],
        "stop_strings": list(options["stops"]),
        "lookahead": {name: value for name, value in search if value is not None} or None,
        "best_of": options["best_of_n"],
        "metrics": options["metrics"] or options["strategies"],
    }
    return parse(GenerationSettings, content, "generate")


def load_checkpoint_model(directory: Path, options: dict[str, Any], draft: bool = False) -> Any:
    """The model in a checkpoint directory, as the options want it; a draft's memories do not learn."""
    dtype = getattr(torch, options["dtype"]) if options["dtype"] else None
    device = resolve_device(options["device"], "--device")
    recipe = "int8" if options["ptq8"] else options["recipe"]
    if draft and "quantization" in read_config(directory):
        recipe = None
    model = load_model(directory, dtype, device, options["verify"], recipe)
    if options["fwpkm_inference_updates"] and not draft:
        try:
            learn_while_reading(model, options["fwpkm_update_lr"], options["fwpkm_chunk_size"])
        except ConfigurationError as error:
            raise click.UsageError(f"--fwpkm-inference-updates: {error}") from None
    return model


def load_draft(options: dict[str, Any]) -> ModelDrafts | NgramDrafts | None:
    """What guesses the next tokens, where that is asked for."""
    if options["draft"] in (None, "ngram"):
        return options["draft"] and NgramDrafts()
    return ModelDrafts(load_checkpoint_model(locate_checkpoint(options["draft"]), options, draft=True))


def use_compiled_steps(session: DecodingSession, directory: Path, wanted: bool | None, texts: int) -> None:
    """Let a session use the checkpoint's compiled steps.

    wanted: refuse to go on without one for so many texts (True), do not use them (False), or use them where they fit
    and warn where they do not (None).
    """
    if wanted is False:
        return
    try:
        found = load_steps(session, directory)
    except CompiledStepError as error:
        if wanted:
            raise
        click.echo(warning_style(f"wavelet: warning: not using compiled steps: {error}"), err=True)
        return
    if wanted and texts not in session.steps:
        have = f"is compiled for {', '.join(map(str, session.steps))} texts at once" if found else "is not compiled"
        raise click.UsageError(f"--compiled: {directory} {have}; run: wavelet compile {directory} --batch {texts}")
