"""The whole model: embedding, blocks, head, loss and streaming state (docs/model.md, section 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.bigrams import HashedBigramEmbedding
from wavelet_core.checkpoint import Pretrained
from wavelet_core.config import ConfigurationError, ModelConfig
from wavelet_core.gradient_checkpointing import run_checkpointed
from wavelet_core.language_model import head_cross_entropy
from wavelet_core.linear import Linear
from wavelet_core.norms import LayerNorm
from wavelet_core.registry import build
from wavelet_core.soft_cap import SoftCappedHead
from wavelet_core.state import State, Tree, document_positions, new_state_of
from wavelet_core.stochastic_depth import StochasticDepth


class WaveletLM(nn.Module, Pretrained):
    """A language model without attention (docs/model.md, section 1), the model family `wavelet`.

    `model(tokens)` maps token ids (B, T) to logits (B, T, V). With a state from `new_state` the same call continues
    the text that the state has read, in any chunking, at a cost per token that does not depend on the position.
    """

    Config = ModelConfig
    resets_at_documents = True

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        shape = config.shape
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std or config.width**-0.5)
        self.embedding_scale = config.width**0.5 if config.embedding_scaling else 1.0
        self.bigram_embedding = None
        if config.bigram_rows is not None:
            self.bigram_embedding = HashedBigramEmbedding(config.bigram_rows, config.width)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(self._blocks(config))
        self.value_embeddings = self._value_embeddings()
        if config.gradient_checkpointing == "lifting":
            self._recompute_levels()
        self.norm = LayerNorm(shape.width)
        self.head_dropout = nn.Dropout(config.head_dropout)
        head = Linear(config.width, config.vocabulary, bias=False)
        if config.tied_embedding:
            head.weight = self.embedding.weight
        elif config.head_std is not None:
            nn.init.normal_(head.weight, std=config.head_std)
        self.head = head if config.logit_soft_cap is None else SoftCappedHead(head, config.logit_soft_cap)
        self.stochastic_depth = None
        if config.stochastic_depth:
            self.stochastic_depth = StochasticDepth(config.stochastic_depth, config.layers, config.loop_iterations)

    @staticmethod
    def _blocks(config: ModelConfig) -> Iterator[nn.Module]:
        shape = config.shape
        wavelet = None
        for _ in range(1 if config.shared_block else config.layers):
            if wavelet is None or not config.shared_wavelet:
                wavelet = build("wavelet", config.wavelet, shape)
            elif hasattr(wavelet, "for_next_block"):
                wavelet = wavelet.for_next_block()
            yield build(
                "block",
                config.block,
                shape,
                wavelet=wavelet,
                transform=build("transform", config.transform, shape),
                mixer=build("mixer", config.mixer, shape),
                bypass=None if config.bypass is None else build("bypass", config.bypass, shape),
                memories=[build("memory", memory, shape) for memory in config.memories],
            )

    def _value_embeddings(self) -> nn.ModuleList | None:
        """A table (V, C) for every block that takes the embedding of its own; it starts at zero."""
        if not any(getattr(block, "takes_value", False) for block in self.blocks):
            return None
        tables = [nn.Embedding(self.config.vocabulary, self.config.width) for _ in self.blocks]
        for table in tables:
            nn.init.zeros_(table.weight)
        return nn.ModuleList(tables)

    def _recompute_levels(self) -> None:
        wavelets: list[Any] = [module for module in self.blocks.modules() if hasattr(module, "recompute_levels")]
        if not wavelets:
            raise ConfigurationError(
                f"model.gradient_checkpointing=lifting needs a lifting wavelet, not model.wavelet.kind="
                f"{self.config.wavelet.kind}; use true, or model.wavelet.kind: lifting"
            )
        for wavelet in wavelets:
            wavelet.recompute_levels = True

    @property
    def applications(self) -> list[nn.Module]:
        """The blocks in the order in which one pass applies them."""
        return [self.blocks[0]] * self.config.layers if self.config.shared_block else list(self.blocks)

    def new_state(
        self, batch_size: int = 1, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """A silent streaming state for `batch_size` independent texts.

        device and dtype default to the model's; the dtype is that of the history rows (sums stay in float32).
        """
        device = torch.device(device) if device is not None else self.norm.weight.device
        dtype = dtype or self.norm.weight.dtype
        applications = self.applications * self.config.loop_iterations
        tree: Tree = {
            "blocks": {
                str(index): block.new_state(batch_size, device, dtype)  # type: ignore[operator]
                for index, block in enumerate(applications)
            }
        }
        if self.bigram_embedding is not None:
            tree["bigrams"] = new_state_of(self.bigram_embedding, batch_size, device, dtype)
        if self.config.cross_window_state:
            tree["window"] = {
                name: torch.zeros(batch_size, 1, self.config.width, device=device, dtype=dtype)
                for name in ("carried_mean", "last_mean")
            }
        return State(tree, batch_size)

    @property
    def carries_window(self) -> bool:
        """Whether training windows carry something over to the next ones of the same text."""
        return self.config.cross_window_state

    def begin_window(self, state: State) -> State:
        """Start the next window of the same text, in place: history is forgotten, the cross-window mean carried.

        Only models with `cross_window_state` carry anything. At the start of a document use `state.reset()`.
        """
        window: Any = state.tree.get("window")
        carried = None if window is None else window["last_mean"].clone()
        state.reset()
        if carried is not None:
            window["carried_mean"].copy_(carried)
        return state

    def forward(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T); with a state, in continuation of what it has read."""
        return self.head(self.head_dropout(self.hidden(tokens, state)))

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """The normalised output (B, T, C) of the last pass, which the head reads."""
        for x in self.passes(tokens, state):
            last = x
        return last

    def loss(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
        """Training loss: the mean cross entropy in nats per token, averaged over the loop iterations."""
        losses = [head_cross_entropy(self.head, self.head_dropout(x), targets) for x in self.passes(tokens, state)]
        return torch.stack(losses).mean()

    def embed(self, tokens: Tensor) -> Tensor:
        """Scaled token embeddings (B, T, C), before dropout."""
        embedding = self.embedding(tokens)
        return embedding * self.embedding_scale if self.embedding_scale != 1.0 else embedding

    def embed_text(self, tokens: Tensor, tree: Any) -> Tensor:
        """What the first block reads, (B, T, C), before dropout; moves the state's tree on, an empty one for none."""
        embedding = self.embed(tokens)
        if self.bigram_embedding is not None:
            embedding = embedding + self.bigram_embedding(tokens, tree.get("bigrams"))
        return embedding

    def passes(self, tokens: Tensor, state: State | None = None) -> Iterator[Tensor]:
        """The normalised output (B, T, C) of every pass of the stack over its own output."""
        tree: Any = {} if state is None else state.chunk_tree
        embedding = self.embed_text(tokens, tree)
        x = self.embedding_dropout(embedding) if self.training else embedding
        trees, window = tree.get("blocks", {}), tree.get("window")
        mean = None if window is None else window["carried_mean"].clone()
        if mean is not None and (positions := document_positions(window)) is not None:
            earlier = positions > torch.arange(tokens.shape[1], device=tokens.device)
            mean = mean * earlier.unsqueeze(-1)  # a document that begins in this window has none
        kept = self.draw_depth()
        for index in range(self.config.loop_iterations * self.config.layers):
            x, mean = self.apply_block(index, x, tokens, embedding, mean, trees.get(str(index)), kept)
            if (index + 1) % self.config.layers == 0:
                yield self.norm(x)
        if window is not None and mean is not None:
            window["last_mean"].copy_(mean[:, -1:].detach())

    def draw_depth(self) -> Tensor | None:
        """Which applications of blocks stochastic depth keeps in this training pass; None where it keeps all."""
        return self.stochastic_depth() if self.stochastic_depth is not None and self.training else None

    def apply_block(
        self,
        index: int,
        x: Tensor,
        tokens: Tensor,
        embedding: Tensor,
        mean: Tensor | None,
        tree: Tree | None,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The stack's output and bypass mean after its next block, the `index`-th of all loop iterations."""
        layer = index % self.config.layers
        kept = kept if layer else None  # the first block always is
        if kept is not None and not torch.compiler.is_compiling() and not kept[index]:
            return x, mean
        place = 0 if self.config.shared_block else layer
        block = self.blocks[place]
        named = {} if self.value_embeddings is None else {"value": self.value_embeddings[place](tokens)}
        if self.config.gradient_checkpointing is True and self.training and torch.is_grad_enabled():
            output, new_mean = run_checkpointed(block, x, embedding, mean, state=tree, **named)
        else:
            output, new_mean = block(x, embedding, mean, tree, **named)
        if kept is not None and torch.compiler.is_compiling():
            # One graph for every decision: the block is computed and its result left out.
            output = torch.where(kept[index], output, x)
            if mean is not None and new_mean is not None:
                new_mean = torch.where(kept[index], new_mean, mean)
        return output, new_mean
