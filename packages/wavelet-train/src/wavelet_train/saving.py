"""What a run saves of its trainer, and how a new trainer goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from wavelet_core.checkpoint import WEIGHTS_FILE, named_tensors
from wavelet_core.tensor_files import CheckpointError, check_fit, load_tensors
from wavelet_train.parallel import assign
from wavelet_train.shards import load_shards, save_shards, shard_shapes
from wavelet_train.training_state import (
    DIRECTORY,
    SHARDS,
    TENSORS_FILE,
    LossScaler,
    TrainingState,
    make_optimizer_state,
    read_tensors,
    restore_optimizer,
    write_state,
)
from wavelet_train.weight_average import PREFIX as AVERAGE

if TYPE_CHECKING:
    from wavelet_train.trainer import Trainer


def save_best(trainer: Trainer) -> None:
    """Replace `best/`; with an average of the weights, that is what it holds."""
    with trainer.averaged():
        _save(trainer, trainer.directory.best)


def save_last(trainer: Trainer, keep: bool = False) -> None:
    """Replace `last/`. keep: this is one of the saves of which earlier ones may be kept. All processes take part."""
    trainer.writer.wait()  # so that there is one snapshot at a time
    if trainer.ranks.is_first:
        trainer.counters.metrics_size = trainer.directory.metrics.flush()
    scaler = None
    if trainer.scaler.is_enabled():
        scaler = LossScaler(
            scale=trainer.scaler.get_scale(), growth_tracker=trainer.scaler.state_dict()["_growth_tracker"]
        )
    state = TrainingState(counters=trainer.counters.model_copy(), loss_scaler=scaler, data=trainer.data.identity)
    tensors = _with_all_rows(trainer)
    shards = trainer.together.shards(tensors)
    others = {name: tensor for name, tensor in tensors.items() if name not in shards}
    whole = trainer.writer.snapshot(trainer.together.gather(others))

    def write_more(fresh: Path) -> None:
        write_state(fresh, state, whole)
        write_shards(fresh.resolve() / DIRECTORY / SHARDS)

    def write_shards(folder: Path | None) -> None:
        folder = trainer.ranks.gather(folder)[0]
        assert folder is not None
        save_shards(shards, folder, trainer.ranks.control)

    if not shards:
        _save(trainer, trainer.directory.last, lambda fresh: write_state(fresh, state, whole))
    else:
        _save(trainer, trainer.directory.last, write_more)
        if not trainer.ranks.is_first:
            write_shards(None)
    trainer.draw_apart(trainer.counters.step)
    if keep and trainer.ranks.is_first:
        trainer.writer.write(partial(keep_last, trainer, trainer.counters.step))


def keep_last(trainer: Trainer, step: int) -> None:
    """Keep `last/`, which is of this step, in `steps/` if the configuration says so."""
    trainer.directory.keep_last(step, trainer.config.keep_checkpoints, trainer.config.keep_every)


def _save(trainer: Trainer, checkpoint: Path, write_more: Callable[[Path], None] = lambda fresh: None) -> None:
    weights = trainer.together.gather(named_tensors(trainer.model))
    if not trainer.ranks.is_first:
        return
    step, weights = trainer.counters.step, trainer.writer.snapshot(weights)
    save, model, tokenizer, run = trainer.directory.save, trainer.model, trainer.data.tokenizer, trainer.run
    trainer.writer.write(lambda: save(checkpoint, model, weights, tokenizer, run, step, write_more))


def _with_all_rows(trainer: Trainer) -> dict[str, Tensor]:
    """The trainer's state with what is carried for all rows of a batch. All processes take part."""
    tensors = trainer.state_tensors()
    rows = {name: trainer.ranks.join_rows(each) for name, each in tensors.items() if name.startswith("carried.")}
    return {**tensors, **rows}


def restore(trainer: Trainer, state: TrainingState, restart_text: bool) -> None:
    """Take weights and all other tensors from `last/`. restart_text: read from its beginning what is read in order.

    Raises CheckpointError that lists by name what does not fit.
    """
    last = trainer.directory.last
    file, folder = last / DIRECTORY / TENSORS_FILE, last / DIRECTORY / SHARDS
    saved, shards = read_tensors(last), shard_shapes(folder)
    weights, file_of_weights = named_tensors(trainer.model), last / WEIGHTS_FILE
    saved_weights = load_tensors(file_of_weights)
    check_fit(file_of_weights, trainer.together.shapes(weights), saved_weights)
    make_optimizer_state(trainer.optimizer, trainer.parameters, {**saved, **shards}, state.counters.step)
    # After that, which moves shards that are in use: they cannot be set aside as other parameters are.
    for name, tensor in weights.items():
        assign(tensor, saved_weights[name])
    # A run may go on on another device, whose own generator then starts from the seed.
    random = trainer.random_states()
    saved = {name: tensor for name, tensor in saved.items() if not name.startswith("random.") or name in random}
    saved = {**{name: state for name, state in random.items() if name != "random.cpu"}, **saved}
    # An average of the weights may have been turned off, or on, and then starts from them.
    average = trainer.average if any(name.startswith(AVERAGE) for name in saved) else None
    if trainer.average is not None and average is None:
        trainer.average.start()
    if average is None:
        saved, shards = (_without_average(tensors) for tensors in (saved, shards))
    wanted = _with_all_rows(trainer)
    if average is None:
        wanted = _without_average(wanted)
    try:
        check_fit(file, trainer.together.shapes(wanted), {**saved, **shards})
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nResume with the configuration that lies beside {last}") from None
    load_shards({name: wanted[name] for name in shards}, folder)
    restore_optimizer(trainer.optimizer, trainer.parameters, saved)
    if average is not None:
        average.restore(saved)
    for name, tensor in trainer.carried.tensors().items():
        tensor.copy_(saved[f"carried.{name}"][trainer.windows.rows])
    windows = trainer.windows
    try:
        if not (windows.holds_place and restart_text):
            windows.load_state_dict({name: saved[f"windows.{name}"] for name in windows.state_dict()})
        trainer.set_random_states({name: saved[name] for name in random})
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); put back an undamaged copy of {last}") from None
    if state.loss_scaler is not None:
        factors = {"scale": state.loss_scaler.scale, "_growth_tracker": state.loss_scaler.growth_tracker}
        trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), **factors})
    trainer.draw_apart(state.counters.step)


def _without_average(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(AVERAGE)}
