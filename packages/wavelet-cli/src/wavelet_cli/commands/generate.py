"""`wavelet generate`: continue a text with a model."""

from __future__ import annotations

import math
import secrets
from typing import Any

import click

from wavelet_cli import completion
from wavelet_cli.component_option import Component
from wavelet_cli.output import print_json
from wavelet_cli.shared_options import (
    checkpoint_argument,
    device_option,
    json_option,
    kernel_option,
    quantize_option,
    threads_option,
    verify_option,
)

MOST_TEXTS = 1_000_000


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
@checkpoint_argument
@click.argument("text", required=False)
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="Text to continue, as TEXT is; several make a batch."
)
@click.option(
    "--prompt-file",
    metavar="FILE",
    type=click.Path(),
    help="Read the prompt from a UTF-8 file, or from - (standard input).",
)
@click.option(
    "--num-tokens", "--tokens", type=click.IntRange(min=1), default=200, show_default=True, help="Tokens to generate."
)
@click.option(
    "-n", "--n", "count", type=click.IntRange(1, MOST_TEXTS), default=1, show_default=True, help="Texts per prompt."
)
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
    shell_complete=completion.policies,
    help="What is remembered: everything; the last window, rebuilt every N tokens; or rebuilt for every token.",
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
    type=Component(),
    metavar="YAML",
    shell_complete=completion.components("sampler"),
    help="A sampler by name or as {kind: ..., ...}, a plugin's for example; applied last, in the order given.",
)
@click.option("--lookahead-k", type=click.IntRange(min=2), help="Search: candidates tried for every token. Default: 3.")
@click.option("--lookahead-depth", type=click.IntRange(1, 1024), help="Search: tokens of each try. Default: 5.")
@click.option(
    "--best-of-n", type=click.IntRange(1, MOST_TEXTS), default=1, help="Draw n texts, keep the most probable one."
)
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
    shell_complete=completion.drafts,
    help="Speculative decoding: guess by look-up in the text, or with a smaller model; the same text, sooner.",
)
@quantize_option
@click.option("--ptq8", is_flag=True, help="The same as --quantize int8.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Type of the weights; default: as stored."
)
@click.option(
    "--compiled/--no-compiled",
    default=None,
    help="Use the steps that `wavelet compile` has put beside CHECKPOINT, or fail; or do not. Default: where they fit.",
)
@device_option
@threads_option
@kernel_option
@click.option(
    "--fwpkm-inference-updates", is_flag=True, help="Let fast-weight memories learn from the text as it goes."
)
@click.option("--fwpkm-update-lr", type=Finite(min=0), help="Their learning rate. Default: the model's.")
@click.option(
    "--fwpkm-chunk-size", type=click.IntRange(min=2), help="Tokens of one of their updates. Default: the model's."
)
@verify_option
@json_option
def command(checkpoint: str, **options: Any) -> None:
    """Continue TEXT with the model in CHECKPOINT, a checkpoint or run directory.

    What comes is printed as it is decoded. A TEXT of - is read from standard input; without any the model starts from
    its end-of-text token. Samplers are applied in this order: repetition penalty, wavelet coherence, entropy-adaptive
    temperature or temperature, top-k, top-p, min-p. Options may be spelt with underscores too.

    \b
    Examples:
      wavelet generate runs/demo "def " --num-tokens 200
      wavelet generate runs/demo --prompt-file start.txt --strategies --seed 7
      wavelet generate runs/demo "The" -n 4 --temperature 0.8 --top-p 0.9 --json
      wavelet generate runs/demo "The" --quantize int4
      echo "import os" | wavelet generate runs/demo - --temperature 0 --draft ngram
    """
    from wavelet_cli.generated_text import Clock, Printer, metrics_table
    from wavelet_cli.generation_options import (
        generation_settings,
        load_checkpoint_model,
        load_draft,
        read_prompts,
        use_compiled_steps,
    )
    from wavelet_cli.processor_threads import choose_threads
    from wavelet_core.checkpoint import locate_checkpoint
    from wavelet_core.generation import DecodingSession, completion_metrics, generate
    from wavelet_core.generation.request import encode_prompt
    from wavelet_core.tokenizers import checkpoint_tokenizer

    # Everything that can be wrong in the options is refused before a model is loaded.
    texts = [text for text in read_prompts(options) for _ in range(options["count"])]
    settings = generation_settings(options)
    directory = locate_checkpoint(checkpoint)
    model = load_checkpoint_model(directory, options)
    threads = choose_threads(directory, model, options["threads"], positions=min(len(texts), options["batch"]))
    tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary, verify=False)
    draft = load_draft(options)
    seed = secrets.randbelow(2**32) if options["seed"] is None else options["seed"]
    prompts = [encode_prompt(text, model.config.vocabulary, tokenizer) for text in texts]
    seeds = range(seed, seed + len(prompts))
    session = DecodingSession(model)
    use_compiled_steps(session, directory, options["compiled"], min(len(texts) * settings.best_of, options["batch"]))
    tokens = generate(session, prompts, settings, tokenizer=tokenizer, seeds=seeds, draft=draft, slots=options["batch"])

    clock = Clock(at_once=settings.best_of > 1)
    shown = [text and tokenizer.decode(ids) for text, ids in zip(texts, prompts, strict=True)]
    printer = Printer(shown, options["clean_spacing"] or options["strategies"], silent=options["as_json"])
    for token in tokens:
        clock.tick()
        printer.add(token.row, token)
        threads.renew()
    finished = list(zip(prompts, printer.completions, strict=True))
    metrics = [completion_metrics(model, *pair) for pair in finished] if settings.metrics else []
    if options["as_json"]:
        report = {"checkpoint": str(directory), "compiled": bool(session.steps)}
        print_json({**report, "texts": printer.report(texts, seeds, metrics), **clock.report()})
        return
    if metrics:
        click.echo(metrics_table(metrics))
    click.echo(clock, err=True)
