"""The contract of a component's kind, as a test that its author can run: `check_component`."""

from __future__ import annotations

from collections.abc import Sequence

from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.registry import KINDS, registry
from wavelet_core.testing.part_contract import PART_CHECKS, PART_CONTRACTS, PartSubject
from wavelet_core.testing.sampler_contract import SAMPLER_CHECKS
from wavelet_core.testing.subject import Check, Subject, run_checks
from wavelet_core.testing.tokenizer_contract import TOKENIZER_CHECKS


def check_component(
    component: type, config: ComponentConfig | None = None, *, kind: str | None = None, shape: ModelShape | None = None
) -> None:
    """Assert that a component keeps the contract of its kind, so that it works in every model and command.

    A part of a model (transform, wavelet, mixer, bypass, memory, block) must be causal, stream (any chunking of a text,
    also with selected and joined batch rows, gives what one pass over all of it gives; a state that is zero at the
    start and keeps its size), pass gradients to its input and to every parameter, survive a state dict and
    construction on the `meta` device, work in float32 and bfloat16, and compile without graph breaks. Its parameters
    are moved away from their initial values for this. One with `resets_at_documents` must read a document behind
    another one as it reads it alone.

    A sampler must leave a token, revive none, and treat a text alike in every batch, whatever rows of its memory were
    selected, joined or copied. A tokenizer must read every text back, in any pieces, also after saving and loading.
    Where wavelet-train is installed: an optimizer must lower a loss at the learning rate that it is given and go on bit
    for bit after a resume, a schedule must be a function of the step, a data set must not change between readings, and
    a logger must bear every record, start again after a kill, and leave the run's own files and random numbers alone.
    Where wavelet-quant is installed: a kernel must give what torch gives, for odd shapes too, or refuse the product.

    config: the options to check; the defaults if left out. kind: looked up in the registry if left out. shape: sizes to
    build a part of a model for; by default C = 24, P = 32 (what a transform's own `padded_width` makes of C) and S = 3.

    Raises AssertionError that says what was found and what to change, ValueError for a kind without such a contract.
    """
    config = component.Config() if config is None else config  # type: ignore[attr-defined]
    kind = kind or _kind_of(component)
    if kind in PART_CONTRACTS:
        if shape is None:
            padded_width = component.padded_width(24) if hasattr(component, "padded_width") else 0
            shape = ModelShape(width=24, levels=2, padded_width=padded_width)
        run_checks(PartSubject(component, config, kind, shape), PART_CHECKS)
        return
    others = _other_contracts()
    if kind not in others:
        known = ", ".join([*PART_CONTRACTS, *others])
        raise ValueError(f"check_component knows the kinds {known}, not {kind!r}; check_model checks a model")
    if shape is not None:
        raise ValueError(f"shape= is for parts of a model; a {kind} has none")
    run_checks(Subject(component, config, kind), others[kind])


def _other_contracts() -> dict[str, Sequence[Check]]:
    contracts: dict[str, Sequence[Check]] = {"sampler": SAMPLER_CHECKS, "tokenizer": TOKENIZER_CHECKS}
    for plugin in registry.plugins:
        registry.manager.call("register_contracts", plugin, register=contracts.__setitem__)
    return contracts


def _kind_of(component: type) -> str:
    for kind in KINDS:
        if any(registry.get(kind, name) is component for name in registry.names(kind)):
            return kind
    raise ValueError(f"{component.__qualname__} is not registered; register it, or pass kind=, such as kind='mixer'")
