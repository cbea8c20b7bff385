"""Our models as the model `wavelet` of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from wavelet_core.checkpoint import load_checkpoint, locate_checkpoint
from wavelet_core.config import ConfigurationError
from wavelet_core.devices import resolve_device
from wavelet_core.generation import DecodingSession, GenerationSettings, collect, generate
from wavelet_core.tokenizers import checkpoint_tokenizer
from wavelet_ecosystem.weight_type import weight_type
from wavelet_train.reading import Reading, token_scores
from wavelet_train.windows import Passage

LONGEST_ANSWER = 256  # tokens, where a task names no number


class WaveletHarness(TemplateLM):
    """`lm_eval --model wavelet --model_args pretrained=CHECKPOINT`.

    A text is read from its end-of-text token on, or from a line end where the vocabulary has none, to its last token,
    with the model's state, however long it is. Scores are those of `wavelet evaluate`.

    pretrained: a checkpoint or run directory, or a model of the hub. batch_size: texts side by side. device, dtype: of
    the weights; dtype as stored by default. window, stride: read in windows of so many tokens instead, as of `Reading`.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str | None = None,
        window: int | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise ConfigurationError(f"batch_size={batch_size!r}: give the number of texts to read side by side")
        directory = locate_checkpoint(pretrained)
        # The harness asks for cuda:0 where nobody has asked for anything.
        unasked = device is None or (device == "cuda:0" and not torch.cuda.is_available())
        self._device = resolve_device("auto" if unasked else str(device), "device")
        self.model = load_checkpoint(directory, weight_type(dtype), self._device)
        self.own_tokenizer = checkpoint_tokenizer(directory, self.model.config.vocabulary, verify=False)
        self.batch_size = int(batch_size)
        self.reading = Reading(window=window, stride=stride, streaming=window is None and stride is None)

    @property
    def eot_token_id(self) -> int:
        """What a text without a context is read from."""
        end = self.own_tokenizer.end_of_text
        return self.own_tokenizer.encode("\n")[0] if end is None else end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The ids of a text; nothing is put before or after it, whatever `add_special_tokens` is."""
        return self.own_tokenizer.checked(self.own_tokenizer.encode(string))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood in nats of each text as a whole."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        return [nats for nats, _ in self._score([([self.eot_token_id], ids) for ids in texts])]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(context, continuation) for _, context, continuation in requests])

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """The log-likelihood in nats of each continuation, and whether each of its tokens is the likeliest."""
        texts = [np.array([*context, *continuation], np.int64) for context, continuation in pairs]
        first = np.cumsum([0, *map(len, texts)])  # of each text, in all of them in a row
        passages = [Passage(text, place + 1) for text, place in zip(texts, first.tolist(), strict=False)]
        counts = np.concatenate([np.arange(len(text)) >= len(pair[0]) for text, pair in zip(texts, pairs, strict=True)])
        nats, correct = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        passages = [passage for passage in passages if len(passage.tokens) > 1]
        for scores in token_scores(self.model, passages, self.reading, self.batch_size, counts=counts):
            text = np.searchsorted(first, scores.places, side="right") - 1
            np.add.at(nats, text, scores.nats)
            np.add.at(correct, text, scores.correct)
        lengths = [len(continuation) for _, continuation in pairs]
        return list(zip((-nats).tolist(), (correct == lengths).tolist(), strict=True))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that each context is continued by, up to a stop string or the end of text."""
        texts: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        session = DecodingSession(self.model)
        for places in groups.values():
            settings = self._settings(requests[places[0]].args[1])
            prompts = [self.tok_encode(requests[place].args[0]) or [self.eot_token_id] for place in places]
            written = generate(
                session, prompts, settings, tokenizer=self.own_tokenizer, seeds=places, slots=self.batch_size
            )
            for place, completion in zip(places, collect(written), strict=True):
                texts[place] = completion.text
        return texts

    def _settings(self, options: Mapping[str, Any]) -> GenerationSettings:
        """What a task asks of a generation. Raises ConfigurationError for what there is not."""
        given = dict(normalize_gen_kwargs(dict(options), LONGEST_ANSWER))
        tokens, until = given.pop("max_gen_toks"), [stop for stop in given.pop("until") if stop]
        temperature = given.pop("temperature", float(given.pop("do_sample")))
        samplers: list[dict[str, Any]] = [{"kind": "temperature", "temperature": temperature}]
        for kind, field in (("top_k", "k"), ("top_p", "p"), ("min_p", "p")):
            if value := given.pop(kind, None):
                samplers.append({"kind": kind, field: value})
        if given:
            raise ConfigurationError(f"generation_kwargs: {', '.join(given)}: there is no such option here")
        end = self.own_tokenizer.end_of_text
        stops = [] if end is None else [end]
        return GenerationSettings(tokens=tokens, samplers=samplers, stop_strings=until, stop_tokens=stops)
