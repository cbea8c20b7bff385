"""The contract of a model family: `check_model`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from wavelet_core.checkpoint import load_checkpoint, named_tensors, save_checkpoint
from wavelet_core.config import LanguageModelConfig, parse, parse_model
from wavelet_core.generation import GenerationSettings, collect, generate
from wavelet_core.linear_cross_entropy import IGNORED
from wavelet_core.registry import registry
from wavelet_core.state import State
from wavelet_core.testing.module_subject import BATCH, CPU, LENGTH, TOLERANCE, ModuleSubject, difference
from wavelet_core.testing.shared_checks import SHARED_CHECKS
from wavelet_core.testing.subject import run_checks

VOCABULARY = 29
PROTOCOL = ("new_state", "embed", "hidden", "head", "loss")
# Enough for every parameter to be used where a model leaves parts out at random, as stochastic depth does.
TRAINING_PASSES = 4


@dataclass(frozen=True)
class ModelSubject(ModuleSubject):
    """A model family under test: tokens in, logits out."""

    compiled_chunk: ClassVar[int] = 1

    def construct(self) -> nn.Module:
        return self.component(self.config)

    def input(self, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randint(self.config.vocabulary, (BATCH, length))

    def altered(self, x: Tensor) -> Tensor:
        return (x + 1) % self.config.vocabulary

    def state(self, module: Any, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> State:
        state: State = module.new_state(batch, CPU, dtype)
        return state

    def outputs(self, module: Any, x: Tensor, state: State | None = None) -> list[Tensor]:
        return [module(x, state)]

    def backward(self, module: Any) -> None:
        for _ in range(TRAINING_PASSES):
            tokens = self.input(LENGTH + 1)
            for state in (None, self.state(module)):
                loss = module.loss(tokens[:, :-1], tokens[:, 1:], state)
                if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.isfinite()):
                    self.fail(
                        f"has a loss that is no finite scalar: {str(loss).splitlines()[0]}",
                        "return the mean loss in nats per token; wavelet_core.language_model.cross_entropy computes it",
                    )
                loss.backward()

    def may_learn(self, module: nn.Module) -> bool:
        memories = [registry.get("memory", name) for name in registry.names("memory")]
        return any(type(part) in memories for part in module.modules())


def check_model(family: type, config: Any = None, *, unused: Sequence[str] = ()) -> None:
    """Assert that a model family is a `LanguageModel`, so that it works in every command.

    Its configuration survives a file. It is `head(hidden(tokens))`, causal, treats the rows of a batch as independent
    texts, and streams: any chunking of a text gives what one pass over all of it gives, whatever rows of states were
    selected, joined, repeated, reset or written; a state is zero at the start and is overwritten in place. With
    `resets_at_documents` it reads a document behind another one as it reads it alone. Its loss is finite, leaves out
    targets of -100, and gives gradients to every parameter. It works in float32 and bfloat16, can be made on the `meta`
    device, saved and loaded as a checkpoint bit for bit, and compiles step by step without graph breaks. Generated text
    is that of whole forward passes, and generating changes nothing on the model.

    config: what is checked; `family.Config()` if left out. A vocabulary size that it leaves open becomes 29. Small
    sizes keep the check fast. unused: parameters, as patterns like `blocks.0.*.bias`, that this configuration has and
    does not use. A family that is not registered is registered while the check runs.

    Raises AssertionError that says what was found and what to change.
    """
    config = family.Config() if config is None else config  # type: ignore[attr-defined]
    if isinstance(config, LanguageModelConfig) and config.vocabulary_size is None:
        config = config.with_vocabulary(VOCABULARY)
    subject = ModelSubject(family, config, "model", unused=unused)
    with _registered(subject):
        run_checks(subject, CHECKS)


@contextmanager
def _registered(subject: ModelSubject) -> Iterator[None]:
    name = getattr(subject.config, "kind", "")
    registered = name in registry.names("model")
    if registered and registry.get("model", name) is not subject.component:
        subject.fail(f"has the name of {registry.get('model', name).__qualname__}", "give `kind` another default")
    with patch.dict(registry._components):
        if not registered:
            with subject.expecting("being registered as a model", "see docs/plugins.md"):
                registry.register("model", subject.component)
        yield


def _check_configuration(subject: ModelSubject) -> None:
    if not isinstance(subject.config, LanguageModelConfig):
        subject.fail(
            f"has a configuration of type {type(subject.config).__name__}",
            "let Config inherit from wavelet_core.LanguageModelConfig, which has vocabulary_size and context_length",
        )
    remedy = "give every field a type that JSON has, and let validation take what model_dump() gives"
    with subject.expecting("writing its configuration to JSON and reading it again", remedy):
        again = parse_model(json.loads(json.dumps(subject.config.model_dump(mode="json"))))
        if again != subject.config:
            subject.fail(f"has a configuration that comes back from JSON as {again!r}", remedy)


def _check_protocol(subject: ModelSubject) -> None:
    with subject.expecting(
        f"being built as {subject.component.__name__}(config)",
        "give __init__ this one parameter, let it be an nn.Module, and build for config.vocabulary tokens",
    ):
        model = subject.build()
    missing = [name for name in PROTOCOL if not callable(getattr(model, name, None))]
    if missing or getattr(model, "config", None) != subject.config:
        subject.fail(
            f"has no {', '.join(missing)}" if missing else "does not keep its configuration",
            "a model has config, new_state, embed, hidden, head and loss: see wavelet_core.LanguageModel",
        )
    with subject.expecting("making a state with new_state()", "let batch_size be 1, device and dtype the model's own"):
        sizes = [state.batch_size for state in (model.new_state(), subject.state(model))]
    if sizes != [1, BATCH]:
        subject.fail(f"makes states of batch sizes {sizes}, not {[1, BATCH]}", "return State(tree, batch_size)")
    tokens = subject.input()
    with torch.no_grad(), subject.expecting(f"on tokens {list(tokens.shape)}", "see wavelet_core.LanguageModel"):
        logits, embedding, hidden = model(tokens), model.embed(tokens), model.hidden(tokens)
        for name, tensor, last in (
            ("embed", embedding, embedding.shape[-1]),
            ("hidden", hidden, hidden.shape[-1]),
            ("forward", logits, subject.config.vocabulary),
        ):
            if tensor.shape != (BATCH, LENGTH, last):
                subject.fail(
                    f"gives {list(tensor.shape)} in {name} for tokens {list(tokens.shape)}",
                    "embed and hidden return (B, T, C), forward (B, T, V)",
                )
        for whole, part in ((logits, hidden), (logits[:, -1], hidden[:, -1])):
            if difference(model.head(part), whole) > TOLERANCE:
                subject.fail(
                    "gives other logits in forward(tokens) than in head(hidden(tokens))",
                    "compute forward as these two, and let the head take (..., C)",
                )


def _check_checkpoint(subject: ModelSubject) -> None:
    model, tokens = subject.build(), subject.input()
    remedy = "keep what the model needs in its configuration, parameters and persistent buffers"
    doing = "being saved and loaded as a checkpoint"
    with torch.no_grad(), TemporaryDirectory() as folder, subject.expecting(doing, remedy):
        save_checkpoint(model, Path(folder) / "checkpoint")
        loaded = load_checkpoint(Path(folder) / "checkpoint")
        after = named_tensors(loaded)
        other = [name for name, tensor in named_tensors(model).items() if not tensor.equal(after[name])]
        if other or loaded.config != model.config or not loaded(tokens).equal(model(tokens)):
            subject.fail(f"is another model after {doing}: {', '.join(other) or 'it gives other logits'}", remedy)


def _check_decoding(subject: ModelSubject) -> None:
    model = subject.build().train()
    prompt = subject.input()[0, :7].tolist()
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    modes = [module.training for module in model.modules()]
    greedy = {"tokens": 12, "samplers": [{"kind": "temperature", "temperature": 0}]}
    with subject.expecting("generating a text", "see wavelet_core.generation.DecodingSession for what decodes a model"):
        [completion] = collect(generate(model, [prompt], parse(GenerationSettings, greedy)))
    other = [name for name, tensor in named_tensors(model).items() if not tensor.equal(before[name])]
    if other or modes != [module.training for module in model.modules()]:
        subject.fail(
            f"was changed by generating a text: {', '.join(other) or 'its training flag'}",
            "write to nothing but the state while reading, and call neither train() nor eval()",
        )
    with torch.no_grad():
        text = torch.tensor([prompt + completion.tokens])
        logits = model.eval()(text, subject.state(model, batch=1))[0, len(prompt) - 1 : -1]
    chosen = logits.gather(-1, text[0, len(prompt) :, None])
    if difference(chosen, logits.amax(-1, keepdim=True)) > TOLERANCE:
        subject.fail(
            "generates a text that is not the most probable one of its forward pass",
            "register every part as a submodule: generation uses a copy of the modules, in evaluation mode",
        )


def _check_ignored_targets(subject: ModelSubject) -> None:
    model, tokens = subject.build().eval(), subject.input()
    targets = tokens.roll(-1, 1)
    kept = LENGTH // 2
    ignored = targets.clone()
    ignored[:, kept:] = IGNORED
    with torch.no_grad(), subject.expecting("computing its loss", "see wavelet_core.LanguageModel"):
        part, whole = model.loss(tokens[:, :kept], targets[:, :kept]), model.loss(tokens, ignored)
    if not difference(part, whole) <= TOLERANCE:
        subject.fail(
            f"has another loss, {whole.item():.4f}, for a text whose second half has the target {IGNORED} than for its "
            f"first half alone, {part.item():.4f}",
            "leave such targets out of the mean; wavelet_core.language_model.cross_entropy does",
        )


CHECKS = (
    _check_configuration,
    _check_protocol,
    *SHARED_CHECKS,
    _check_ignored_targets,
    _check_checkpoint,
    _check_decoding,
)
