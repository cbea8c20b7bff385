"""Streaming state: the finite history that a causal model needs to go on (docs/model.md, section 10).

Every stateful module has `new_state(batch_size, device, dtype)`, which returns a dictionary of batch-first tensors
(or of such dictionaries), all zeros, and takes that dictionary in `forward(..., state)`, where it reads its history
and overwrites it in place, by `move_on` where it can: then the state can also go back. Per-position modules have no
`new_state` and take no state. `State` holds the tree of a whole model.

A chunk may hold the beginnings of documents, before which nothing may be read (`document_positions` of a state). A
stateful module that can do this has `resets_at_documents = True` and asks `document_positions(state)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from wavelet_core.tensor_files import load_tensors_into, save_tensors

Tree = dict[str, Union[Tensor, "Tree"]]


def map_tree(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The same tree with every tensor replaced by function(tensor)."""
    return {key: map_tree(function, node) if isinstance(node, dict) else function(node) for key, node in tree.items()}


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree with its dotted name."""
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from leaves(node, f"{prefix}{key}.")
        else:
            yield prefix + key, node


def is_stateful(module: nn.Module | None) -> bool:
    """Whether a module keeps history between chunks of one text."""
    return hasattr(module, "new_state")


def new_state_of(module: nn.Module | None, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
    """A silent state for a module; an empty one for a per-position module or none."""
    return module.new_state(batch_size, device, dtype) if is_stateful(module) else {}  # type: ignore[operator, union-attr]


def call(module: nn.Module, *arguments: Any, state: Tree | None) -> Any:
    """Apply a module, handing the state to it only if it keeps one."""
    return module(*arguments, state) if is_stateful(module) else module(*arguments)


def move_on(history: Tensor, rows: Tensor) -> None:
    """Overwrite a history (B, r, ...) by the last r of rows (B, R, ...), in place.

    The rows end with one for every new position, so that the history after fewer of the new positions lies further up:
    that is what a `recording` goes back to. Nobody may write into the rows afterwards.
    """
    rows = rows.detach() if rows.requires_grad else rows
    history.copy_(rows[:, -history.shape[1] :])
    if not torch.compiler.is_compiling() and (recording := _recording.get()) is not None:
        recording.rows[id(history)] = history, rows


DOCUMENT_POSITIONS = "document_positions"


def document_positions(state: Tree | None) -> Tensor | None:
    """(B, T), how many tokens of its document stand before each position of the chunk; None where nothing is reset.

    Whatever a position reads has to lie at most so far back: what stood before, in the chunk or in the history, is
    another document's.
    """
    positions: Any = None if state is None else state.get(DOCUMENT_POSITIONS)
    return positions


def in_document(past: Tensor, distance: int, positions: Tensor | None) -> Tensor:
    """Rows (B, T, ...) from `distance` positions back, zero where another document was read then."""
    if positions is None:
        return past
    outside = positions < distance
    return past.masked_fill(outside.view(*outside.shape, *[1] * (past.dim() - 2)), 0)


def _with_positions(tree: Tree, positions: Tensor) -> Tree:
    """The same tensors, and the positions in every dictionary that holds something."""
    filled: Tree = {
        key: _with_positions(node, positions) if isinstance(node, dict) else node for key, node in tree.items()
    }
    return {**filled, DOCUMENT_POSITIONS: positions} if filled else filled


def without_reset(model: nn.Module) -> dict[str, nn.Module]:
    """The stateful modules of a model, itself included, that do not say that they can reset at documents, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_stateful(module) and not getattr(module, "resets_at_documents", False)
    }


class Recording:
    """What `move_on` wrote while a state read a chunk."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}

    def covers(self, state: State) -> bool:
        """Whether all of the state was written by `move_on`."""
        return all(id(tensor) in self.rows for _, tensor in leaves(state.tree))

    def rewind(self, positions: int) -> None:
        """Take the state back by some of the chunk's positions, not by all of them."""
        for history, rows in self.rows.values():
            end = rows.shape[1] - positions
            history.copy_(rows[:, end - history.shape[1] : end])


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording() -> Iterator[Recording]:
    """Record what happens to states while this lasts: one forward pass over a chunk, without `torch.compile`."""
    record = Recording()
    token = _recording.set(record)
    try:
        yield record
    finally:
        _recording.reset(token)


def is_recorded() -> bool:
    """Whether a `recording` is being made."""
    return _recording.get() is not None


class State:
    """The streaming state of a model for a batch of independent rows.

    Rows are independent of each other: they may have read different numbers of tokens, and can be selected,
    repeated, joined and reset alone. All memory is allocated when the state is made; going on never grows it.

    document_positions: (B, T) int64, of the chunk that is read next, how many tokens of its document stand before each
    position. Set it to let nothing cross the beginning of a document, as if each were read from silence. Only for
    models without a part `without_reset`, and kept up for all that the state reads until it is reset.
    """

    document_positions: Tensor | None = None

    def __init__(self, tree: Tree, batch_size: int):
        self.tree = tree
        self.batch_size = batch_size

    @property
    def chunk_tree(self) -> Tree:
        """The tree as parts take it for the next chunk."""
        return self.tree if self.document_positions is None else _with_positions(self.tree, self.document_positions)

    def _map(self, function: Callable[[Tensor], Tensor], batch_size: int | None = None) -> State:
        return State(map_tree(function, self.tree), self.batch_size if batch_size is None else batch_size)

    def clone(self) -> State:
        """An independent copy."""
        return self._map(Tensor.clone)

    def copy_(self, other: State) -> State:
        """Overwrite this state with another of the same batch size, in place."""
        for (_, target), (_, source) in zip(leaves(self.tree), leaves(other.tree), strict=True):
            target.copy_(source)
        return self

    def write(self, rows: Sequence[int], other: State) -> State:
        """Overwrite some batch rows by those of another state, in order and in place."""
        for (_, target), (_, source) in zip(leaves(self.tree), leaves(other.tree), strict=True):
            target[torch.as_tensor(rows, device=target.device)] = source
        return self

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> State:
        """A copy of some batch rows, in the order given; an int selects a batch of one."""
        index = torch.arange(self.batch_size)[rows].reshape(-1)
        return self._map(lambda tensor: tensor.index_select(0, index.to(tensor.device)), len(index))

    def repeat(self, times: int) -> State:
        """A copy with every row repeated `times` times in a row (0, 0, 1, 1, ...)."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, 0), self.batch_size * times)

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """One state with the rows of several, in order."""

        def cat(*nodes: Any) -> Any:
            if isinstance(nodes[0], dict):
                return {key: cat(*(node[key] for node in nodes)) for key in nodes[0]}
            return torch.cat(nodes)

        return State(cat(*(state.tree for state in states)), sum(state.batch_size for state in states))

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> State:
        """Back to silence, in place: all rows or some of them. Do this at the start of every document."""
        for _, tensor in leaves(self.tree):
            if rows is None:
                tensor.zero_()
            else:
                tensor[torch.as_tensor(rows, device=tensor.device)] = 0
        return self

    def to(self, device: torch.device | str) -> State:
        """The state on another device (itself where it already is there)."""
        return self._map(lambda tensor: tensor.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes of memory held; it does not depend on how much has been read."""
        return sum(tensor.nbytes for _, tensor in leaves(self.tree))

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file, atomically."""
        save_tensors(dict(leaves(self.tree)), Path(path))

    def load(self, path: str | Path) -> State:
        """Overwrite this state with a saved one of the same model and batch size, in place.

        Raises CheckpointError when names, shapes or dtypes differ.
        """
        load_tensors_into(dict(leaves(self.tree)), Path(path))
        return self
