"""What parts of a model and whole models have in common: causal, streaming, loadable, typed, compilable."""

from __future__ import annotations

import itertools
import random
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from wavelet_core.checkpoint import materialize, named_tensors
from wavelet_core.state import State, is_stateful, leaves
from wavelet_core.testing.module_subject import BATCH, LENGTH, TOLERANCE, ModuleSubject, difference

COMPILE_REMEDY = "let no Python branch, print or .item() depend on a tensor's values; prefer torch.where and masks"


def _check_repetition(subject: ModuleSubject) -> None:
    module, x = subject.build(), subject.input()
    with torch.no_grad():
        if not subject.run(module, x).equal(subject.run(module, x)):
            subject.fail(
                "gives another output when it is called again in evaluation mode, or one that is no number",
                "keep nothing on the module between calls, draw no random numbers when not training, divide by no zero",
            )


def _check_causality(subject: ModuleSubject) -> None:
    module, x = subject.build(), subject.input()
    with torch.no_grad():
        before = subject.run(module, x)
        for position in (1, LENGTH // 2, LENGTH - 1):
            changed = x.clone()
            changed[:, position] = subject.altered(x[:, position])
            leak = (subject.run(module, changed) - before)[:, :position].abs().amax((0, 2))
            if leak.max() > TOLERANCE:
                subject.fail(
                    f"is not causal: changing position {position} changed the output at position {int(leak.argmax())}",
                    "let a position read itself and earlier ones only; no mean, norm or softmax over the T axis",
                )
        other_row = x.clone()
        other_row[1] = subject.altered(x[1])
        if difference(subject.run(module, other_row)[0], before[0]) > TOLERANCE:
            subject.fail(
                "mixes the rows of a batch: changing row 1 changed the output of row 0",
                "treat batch rows as independent texts; no statistics over the B axis",
            )


def _check_state(subject: ModuleSubject) -> None:
    module = subject.build()
    if not is_stateful(module):
        return
    with subject.expecting(
        "making a state with new_state(batch_size, device, dtype)",
        "return zero tensors with the batch as the first axis: in a dictionary, or for a model in a State",
    ):
        state = subject.state(module)
        start = {name: (tensor, tensor.shape, tensor.data_ptr()) for name, tensor in leaves(state.tree)}
    for name, (tensor, sizes, _) in start.items():
        if not sizes or sizes[0] != BATCH:
            subject.fail(
                f"has a state {name!r} of shape {list(sizes)} for a batch of {BATCH}",
                "put the batch first, so that rows can be selected, joined and reset",
            )
        if tensor.any():
            subject.fail(
                f"has a state {name!r} that is not zero at the start",
                "let zeros mean silence: states are reset by zeroing them",
            )
    with subject.expecting("reading a text with a state", "take `state` as the last argument, None for silence"):
        subject.stream(module, subject.input(), state, [LENGTH - 1, 1])
    after = dict(leaves(state.tree))
    for name in start.keys() | after.keys():
        if name not in start or name not in after or after[name].shape != start[name][1]:
            subject.fail(
                f"changed the size of its state {name!r} while reading",
                "allocate all of it in new_state; cost and memory per token must not grow with the position",
            )
        if after[name].data_ptr() != start[name][2]:
            subject.fail(
                f"replaced its state {name!r} by another tensor",
                "overwrite it in place, with copy_ or add_, so that a state can be shared and compiled",
            )
        if after[name].requires_grad:
            subject.fail(
                f"keeps the graph of its gradients in its state {name!r}", "store history detached: copy_(x.detach())"
            )


def _check_streaming(subject: ModuleSubject) -> None:
    module, x = subject.build(), subject.input()
    stateful = is_stateful(module)
    remedy = (
        "read the history from `state` and move it on in place: positions before the chunk are in the state, not zero"
        if stateful
        else "its output depends on earlier positions: give it new_state(batch_size, device, dtype) and let forward "
        "take a state, or make it read its own position only"
    )
    cuts = sorted(random.Random(0).sample(range(1, LENGTH), 6))
    chunkings = [
        [1] * LENGTH,
        [end - start for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True)],
        [LENGTH - 1, 1],
    ]
    with torch.no_grad(), subject.expecting("reading a text chunk by chunk", remedy):
        parallel = subject.run(module, x, subject.state(module))
        # A memory may learn only while it keeps a state; everything else must do without one what it does with it.
        if not subject.may_learn(module) and difference(subject.run(module, x), parallel) > TOLERANCE:
            subject.fail("gives other outputs with a fresh state than without one", "let no state mean silence: zeros")
        for lengths in chunkings:
            if difference(subject.stream(module, x, subject.state(module), lengths), parallel) > TOLERANCE:
                chunks = "single positions" if max(lengths) == 1 else f"chunks of {lengths} positions"
                subject.fail(f"does not stream: {chunks} give other outputs than one pass over all of them", remedy)
        _check_rows(subject, module, x, parallel)


def _check_rows(subject: ModuleSubject, module: Any, x: Tensor, parallel: Tensor) -> None:
    """Rows that have read different lengths go on together, however their states came together."""
    read = (5, 12, 19)
    states = [subject.state(module, batch=1) for _ in read]
    for row, length in enumerate(read):
        subject.run(module, x[row : row + 1, :length], states[row])
    joined = State.join(states)[[2, 0, 1]].clone().repeat(2)
    slots = subject.state(module)
    subject.run(module, x[:, :7], slots)
    slots.reset([0]).write([3, 1, 4], joined[[0, 2, 4]])
    for doing, state, texts in (
        ("joined, selected and repeated", joined, [(2, 19), (2, 19), (0, 5), (0, 5), (1, 12), (1, 12)]),
        ("reset and written", slots, [(0, 0), (0, 5), (2, 7), (2, 19), (1, 12)]),
    ):
        following, wanted = (
            torch.stack([whole[row, start : start + 10] for row, start in texts]) for whole in (x, parallel)
        )
        if difference(subject.run(module, following, state), wanted) > TOLERANCE:
            subject.fail(
                f"mixes up rows: {doing} rows of states that have read different numbers of positions go on wrongly",
                "keep everything that differs between texts, counters included, in batch-first state tensors",
            )


def _check_documents(subject: ModuleSubject) -> None:
    module, x = subject.build(), subject.input()
    if not (is_stateful(module) and getattr(module, "resets_at_documents", False)):
        return
    rows = [[0, 1, 2, 17], [0, 18, 33], [0], [0, 20], [0, 5, 30, LENGTH - 1]]
    documents = [[*starts, LENGTH] for starts in rows]
    positions = torch.tensor([[i for a, b in itertools.pairwise(ends) for i in range(b - a)] for ends in documents])
    remedy = "ask document_positions(state), and let a position read nothing from further back than its own"
    with torch.no_grad(), subject.expecting("reading several documents in a window", remedy):
        state, parts = subject.state(module), []
        for part, places in zip(x.split([20, LENGTH - 20], 1), positions.split([20, LENGTH - 20], 1), strict=True):
            state.document_positions = places
            parts.append(subject.run(module, part, state))
        for row, (found, ends) in enumerate(zip(torch.cat(parts, 1), documents, strict=True)):
            for start, stop in itertools.pairwise(ends):
                alone = subject.run(module, x[row : row + 1, start:stop], subject.state(module, batch=1))
                if difference(found[start:stop], alone[0]) > TOLERANCE:
                    subject.fail(
                        "has resets_at_documents, but a document gives other outputs behind another one than alone",
                        remedy,
                    )


def _check_gradients(subject: ModuleSubject) -> None:
    module = subject.build().train()
    remedy = "use differentiable operations, none in place on what a gradient needs: clone() a history before using it"
    with subject.expecting("in a forward and backward pass", remedy):
        subject.backward(module)
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    dead = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    if dead := [name for name in dead if not any(fnmatch(name, pattern) for pattern in subject.unused)]:
        subject.fail(
            f"gives no gradient to {', '.join(dead)}",
            "use each parameter in forward without detaching it, or do not create it where an option is off",
        )
    if not all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None):
        subject.fail("gives gradients that are not finite", "look for divisions by zero and square roots at zero")


def _check_state_dict(subject: ModuleSubject) -> None:
    module, x = subject.build(), subject.input()
    with torch.no_grad():
        wanted = subject.run(module, x)
        torch.manual_seed(1)
        again = subject.build()
        with subject.expecting("loading its own state dict", "keep the default state_dict and load_state_dict"):
            again.load_state_dict(module.state_dict())
        if difference(subject.run(again, x), wanted) > TOLERANCE:
            subject.fail(
                "gives other outputs after its state dict was loaded into a second instance",
                "keep every number that is drawn at random or learned in a parameter or a persistent buffer",
            )


def _check_meta_device(subject: ModuleSubject) -> None:
    module, x = subject.build(), subject.input()
    remedy = (
        "checkpoints are loaded into a model made on the meta device: keep every tensor in a parameter or buffer, read "
        "no values in __init__, and refill buffers that are not persistent in a method reset_buffers()"
    )
    with torch.no_grad(), subject.expecting("being made on the meta device and filled afterwards", remedy):
        with torch.device("meta"):
            loaded = subject.construct().eval()
        materialize(loaded, named_tensors(module))
        same = difference(subject.run(loaded, x), subject.run(module, x)) <= TOLERANCE
    if not same:
        subject.fail("gives other outputs when it was made on the meta device and filled afterwards", remedy)


def _check_types(subject: ModuleSubject) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = subject.build().to(dtype)
        x = subject.input(dtype=dtype)
        remedy = (
            "make constants in the input's dtype, and cast back with .to(x.dtype) what is computed in another: outputs "
            f"must be {dtype} when weights and inputs are"
        )
        with subject.expecting(f"in {dtype}", remedy):
            for state in (None, subject.state(module, dtype)):
                outputs = subject.outputs(module, x, state)
                if any(output.dtype != dtype for output in outputs):
                    subject.fail(f"gave {outputs[0].dtype} outputs for {dtype} inputs", remedy)
                if not all(output.isfinite().all() for output in outputs):
                    subject.fail(f"gave outputs in {dtype} that are not finite", "compute in float32 what overflows")


def _check_compilation(subject: ModuleSubject) -> None:
    module, x = subject.build(), subject.input(2 * subject.compiled_chunk)
    torch.compiler.reset()
    # Tracing alone decides about graph breaks; what a compiler makes of the graph afterwards does not matter here.
    compiled = torch.compile(subject.run, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad(), subject.expecting("under torch.compile(fullgraph=True)", COMPILE_REMEDY):
        state, wanted = subject.state(module), subject.state(module)
        for part in x.split(subject.compiled_chunk, 1):
            if difference(compiled(module, part, state), subject.run(module, part, wanted)) > TOLERANCE:
                subject.fail("gives other outputs when compiled", "keep no state on the module between calls")


SHARED_CHECKS = (
    _check_repetition,
    _check_causality,
    _check_state,
    _check_streaming,
    _check_documents,
    _check_gradients,
    _check_state_dict,
    _check_meta_device,
    _check_types,
    _check_compilation,
)
