"""`wavelet generate`: continue a text with a model."""

from __future__ import annotations

import math
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wavelet_cli.options import json_option
from wavelet_cli.output import print_json, table
from wavelet_cli.streaming import Clock, Printer

if TYPE_CHECKING:
    from wavelet_core.generation import Completion, GenerationSettings


class Finite(click.FloatRange):
    """A number in a range; infinity and nan are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@click.command(
    "generate",
    short_help="Continue a text with a model.",
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
@click.argument("checkpoint")
@click.argument("stdin", metavar="[-]", required=False, type=click.Choice(["-"]))
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Text to continue; several make a batch.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from a UTF-8 file, or from - (standard input).")
@click.option(
    "--num-tokens", "--tokens", type=click.IntRange(min=1), default=200, show_default=True, help="Tokens to generate."
)
@click.option("-n", "--n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Texts per prompt.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Texts decoded together.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Makes texts repeatable: text i has seed + i. Default: random."
)
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End a text before this string. May be repeated.")
@click.option(
    "--context",
    default="stream",
    show_default=True,
    metavar="stream|hop:N|window",
    help="What is "
    "remembered: everything; the last window, rebuilt every N tokens; the last window, rebuilt for every token.",
)
@click.option("--temperature", type=Finite(min=0), help="Divide logits by this; 0 is greedy. Default: 1.")
@click.option("--top-k", type=click.IntRange(min=0), help="Keep the k most probable tokens; 0 keeps all.")
@click.option("--top-p", type=Finite(min=0, max=1, min_open=True), help="Keep the most probable tokens of this total.")
@click.option("--min-p", type=Finite(min=0, max=1), help="Drop tokens less probable than this share of the best one.")
@click.option("--repetition-penalty", type=Finite(min=0, min_open=True), help="Above 1 discourages tokens seen before.")
@click.option("--entropy-adaptive", is_flag=True, help="Lower the temperature where the model is uncertain.")
@click.option("--entropy-t-min", type=Finite(min=0, min_open=True), help="Its lowest temperature. Default: 0.3.")
@click.option("--entropy-t-max", type=Finite(min=0, min_open=True), help="Its highest temperature. Default: 1.5.")
@click.option("--wavelet-coherence", is_flag=True, help="Lower the temperature when the text drifts from the prompt.")
@click.option(
    "--sampler",
    "samplers",
    multiple=True,
    metavar="YAML",
    help="A sampler by name or as {kind: ..., ...}, a plugin's for example; applied last, in the order given.",
)
@click.option("--lookahead-k", type=click.IntRange(min=2), help="Search: candidates tried for every token. Default: 3.")
@click.option("--lookahead-depth", type=click.IntRange(min=1), help="Search: tokens of each try. Default: 5.")
@click.option("--best-of-n", type=click.IntRange(min=1), default=1, help="Draw n texts, keep the most probable one.")
@click.option(
    "--strategies",
    is_flag=True,
    help="Preset: --entropy-adaptive --entropy-t-max 0.9 --top-p 0.85 "
    "--repetition-penalty 1.2 --clean-spacing --metrics; other options change its values.",
)
@click.option("--clean-spacing", is_flag=True, help="Remove the spaces that WikiText has around punctuation.")
@click.option("--metrics", is_flag=True, help="Report log-probability, entropy, variety, repetition and drift.")
@click.option(
    "--draft",
    metavar="ngram|CHECKPOINT",
    help="Speculative decoding: guess by look-up in the text, or with a smaller model; the same text, sooner.",
)
@click.option("--ptq8", is_flag=True, help="Quantize the weights to 8 bits after loading.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Type of the weights; default: as stored."
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the steps with torch.compile: a minute at first, then several times faster for small models.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
@click.option(
    "--fwpkm-inference-updates", is_flag=True, help="Let fast-weight memories learn from the text as it goes."
)
@click.option("--fwpkm-update-lr", type=Finite(min=0), help="Their learning rate. Default: the model's.")
@click.option(
    "--fwpkm-chunk-size", type=click.IntRange(min=2), help="Tokens of one of their updates. Default: the model's."
)
@json_option
def command(checkpoint: str, **options: Any) -> None:
    """Continue a prompt with the model in CHECKPOINT, a checkpoint or run directory.

    The text is printed as it is decoded. Without a prompt the model starts from its end-of-text token. Samplers are
    applied in this order: repetition penalty, wavelet coherence, entropy-adaptive temperature or temperature, top-k,
    top-p, min-p. Options may be spelt with underscores too.

    \b
    Examples:
      wavelet generate runs/demo --prompt "def " --num-tokens 200
      wavelet generate runs/demo --prompt-file start.txt --strategies --seed 7
      wavelet generate runs/demo --prompt "The" -n 4 --temperature 0.8 --top-p 0.9 --json
      echo "import os" | wavelet generate runs/demo - --temperature 0 --draft ngram
    """
    texts = _prompts(options)
    settings = _settings(options)
    # Everything that can be wrong in the options has been refused before a model is loaded.
    from wavelet_core.checkpoint import locate_checkpoint
    from wavelet_core.generation import DecodingSession, ModelDrafts, NgramDrafts, generate
    from wavelet_core.generation.batch import encode_prompt
    from wavelet_core.tokenizers import checkpoint_tokenizer

    directory = locate_checkpoint(checkpoint)
    model = _load(directory, options)
    tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary_size or 0)
    draft: ModelDrafts | NgramDrafts | None = None
    if options["draft"] is not None:
        named = options["draft"]
        draft = NgramDrafts() if named == "ngram" else ModelDrafts(_load(locate_checkpoint(named), options, draft=True))
    seed = secrets.randbelow(2**32) if options["seed"] is None else options["seed"]
    size = model.config.vocabulary
    prompts = [encode_prompt(text, size, tokenizer) for text in texts for _ in range(options["count"])]
    shown = [text and tokenizer.decode(ids) for text, ids in zip(_repeated(texts, options), prompts, strict=True)]
    seeds = range(seed, seed + len(prompts))
    session = DecodingSession(model, options["compiled"])
    tokens = generate(session, prompts, settings, tokenizer=tokenizer, seeds=seeds, draft=draft, slots=options["batch"])

    clock = Clock(at_once=settings.best_of > 1)
    printer = Printer(shown, options["clean_spacing"], silent=options["as_json"])
    for token in tokens:
        clock.tick()
        printer.add(token.row, token)
    measured = [
        _metrics(model, prompt, completion) if settings.metrics else None
        for prompt, completion in zip(prompts, printer.completions, strict=True)
    ]
    if options["as_json"]:
        print_json(
            {
                "checkpoint": str(directory),
                "texts": [
                    {
                        "prompt": prompt,
                        "text": text,
                        "tokens": completion.tokens,
                        "finish": completion.finish,
                        "seed": seed + row,
                        **({} if values is None else {"metrics": values}),
                    }
                    for row, (prompt, text, completion, values) in enumerate(
                        zip(_repeated(texts, options), printer.texts, printer.completions, measured, strict=True)
                    )
                ],
                **clock.report(),
            }
        )
        return
    if settings.metrics:
        click.echo(_metrics_table([values for values in measured if values is not None]))
    click.echo(clock, err=True)


def _repeated(texts: list[str], options: dict[str, Any]) -> list[str]:
    return [text for text in texts for _ in range(options["count"])]


def _prompts(options: dict[str, Any]) -> list[str]:
    """The prompts from wherever they are given; one empty prompt when there is none."""
    sources = [options["prompts"] or None, options["prompt_file"], options["stdin"]]
    if sum(source is not None for source in sources) > 1:
        raise click.UsageError("give the prompt in one way: --prompt, --prompt-file or - (standard input)")
    file = options["prompt_file"] or options["stdin"]
    if file is None:
        return list(options["prompts"]) or [""]
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


def _settings(options: dict[str, Any]) -> GenerationSettings:
    """The settings that the options ask for."""
    from wavelet_cli.sampler_presets import STRATEGIES, in_order
    from wavelet_core.config import parse
    from wavelet_core.generation import GenerationSettings

    chosen = {name: dict(fields) for name, fields in STRATEGIES.items()} if options["strategies"] else {}
    if options["strategies"]:
        options["clean_spacing"] = options["metrics"] = True
    if options["entropy_adaptive"]:
        chosen.setdefault("entropy_adaptive", {})
    if options["temperature"] is not None:
        if options["entropy_adaptive"]:
            raise click.UsageError(
                "--entropy-adaptive chooses the temperature itself: leave out --temperature, or set --entropy-t-max"
            )
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
    lookahead = {"candidates": options["lookahead_k"], "depth": options["lookahead_depth"]}
    lookahead = {name: value for name, value in lookahead.items() if value is not None}
    content = {
        "tokens": options["num_tokens"],
        "samplers": [*in_order(chosen), *map(_sampler, options["samplers"])],
        "context": options["context"],
        "stop_strings": list(options["stops"]),
        "lookahead": lookahead or None,
        "best_of": options["best_of_n"],
        "metrics": options["metrics"],
    }
    return parse(GenerationSettings, content, "generate")


def _sampler(text: str) -> Any:
    """A sampler given as YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise click.UsageError(f"--sampler {text!r} is not YAML: {' '.join(str(error).split())}") from error


def _load(directory: Path, options: dict[str, Any], draft: bool = False) -> Any:
    """The model in a checkpoint directory, as the options want it."""
    import torch

    from wavelet_core import WaveletLM
    from wavelet_core.devices import resolve_device
    from wavelet_memory import FastWeightProductKeyMemory

    dtype = getattr(torch, options["dtype"]) if options["dtype"] else None
    model = WaveletLM.from_pretrained(directory, dtype, resolve_device(options["device"], "--device"))
    if options["fwpkm_inference_updates"] and not draft:
        memories = [module for module in model.modules() if isinstance(module, FastWeightProductKeyMemory)]
        if not memories:
            raise click.UsageError("--fwpkm-inference-updates: the model has no fast_weight_product_key memory")
        for memory in memories:
            memory.inference_updates = True
            if options["fwpkm_update_lr"] is not None:
                memory.update_learning_rate = options["fwpkm_update_lr"]
            if options["fwpkm_chunk_size"] is not None:
                memory.chunk_size = options["fwpkm_chunk_size"]
    if options["ptq8"]:
        from wavelet_quant import quantize_int8

        quantize_int8(model)
    return model


def _metrics(model: Any, prompt: list[int], completion: Completion) -> dict[str, Any]:
    """All metrics of one text."""
    import torch

    from wavelet_core.generation import text_drift, text_metrics

    values = text_metrics(completion.tokens, completion.log_probabilities, completion.entropies)
    device = next(model.parameters()).device
    with torch.inference_mode():
        embeddings = [model.embed(torch.tensor([ids], device=device))[0] for ids in (prompt, completion.tokens)]
        return {**values, "drift": text_drift(embeddings[0], embeddings[1])}


def _metrics_table(measured: list[dict[str, Any]]) -> str:
    """The metrics of all texts side by side."""
    names = list(measured[0])
    rows = [
        [name.replace("_", " "), *(v if isinstance(v := values[name], int) else f"{v:.4f}" for values in measured)]
        for name in names
    ]
    return table(rows, ["metric", *(str(number + 1) for number in range(len(measured)))])
