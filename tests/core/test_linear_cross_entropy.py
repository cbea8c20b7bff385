"""Cross entropy in chunks: the numbers of the plain form, without its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wavelet_core import linear_cross_entropy as module
from wavelet_core.language_model import cross_entropy, head_cross_entropy
from wavelet_core.linear import Linear
from wavelet_core.linear_cross_entropy import IGNORED, linear_cross_entropy


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, soft_cap: float | None = None
) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    return F.cross_entropy(
        logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten()
    )


def gradients(loss: Any, *tensors: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(3 * loss(*tensors), [t for t in tensors if isinstance(t, Tensor) and t.requires_grad])


def draw(count: int, width: int, vocabulary: int, bias: bool, dtype: torch.dtype = torch.float64) -> list[Any]:
    hidden = torch.randn(count, width, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, dtype=dtype).requires_grad_()
    offset = torch.randn(vocabulary, dtype=dtype).requires_grad_() if bias else None
    return [hidden, weight, torch.randint(vocabulary, (count,)), offset]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(2, 60),
    st.integers(1, 400),
    st.booleans(),
    st.floats(0, 1),
    st.sampled_from([None, 2.0]),
    st.randoms(),
)
def test_loss_and_gradients_are_those_of_the_plain_form(count, vocabulary, chunk, bias, ignored, soft_cap, random):
    torch.manual_seed(random.randrange(1 << 32))
    tensors = [*draw(count, 5, vocabulary, bias), soft_cap]
    tensors[2][1:][torch.rand(count - 1) < ignored] = IGNORED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        patch.setattr(module, "CACHED", chunk // 2)
        torch.testing.assert_close(linear_cross_entropy(*tensors), plain(*tensors))
        found, expected = (gradients(loss, *tensors) for loss in (linear_cross_entropy, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_probabilities_that_vanish_in_float32_still_cost(offset):
    weight = torch.tensor([[offset], [offset + 200], [offset - 900]])
    tensors = (torch.ones(3, 1), weight, torch.tensor([0, 1, 2]), None)
    torch.testing.assert_close(linear_cross_entropy(*tensors), plain(*tensors))
    assert linear_cross_entropy(*tensors) == pytest.approx((200 + 0 + 1100) / 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_its_type_and_keeps_float32_sums(dtype):
    tensors = draw(64, 32, 300, True, torch.float32)
    with torch.autocast("cpu", dtype):
        losses = [form(*tensors) for form in (linear_cross_entropy, plain)]
        found, expected = (gradients(form, *tensors) for form in (linear_cross_entropy, plain))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    exact = gradients(plain, *tensors)
    for ours, theirs, truth in zip(found, expected, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - truth).norm() <= 1.1 * (theirs - truth).norm()


def test_only_what_learns_gets_a_gradient():
    hidden, weight, targets, _ = draw(10, 4, 7, False)
    for frozen in (hidden, weight):
        frozen.requires_grad_(False)
        found, expected = (gradients(form, hidden, weight, targets, None) for form in (linear_cross_entropy, plain))
        torch.testing.assert_close(found, expected)
        frozen.requires_grad_(True)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


def test_a_second_derivative_is_refused():
    tensors = draw(3, 2, 4, False)
    (gradient,) = torch.autograd.grad(linear_cross_entropy(*tensors), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_a_graph_that_is_walked_twice_is_refused():
    loss = linear_cross_entropy(*draw(3, 2, 4, False))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class LargestTensor(TorchDispatchMode):
    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_all_logits_are_never_there():
    hidden, weight, targets, _ = draw(1 << 13, 2, 1 << 11, False, torch.float32)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, targets).backward()
    assert largest.entries <= len(hidden) * len(weight) // 2


def test_it_compiles_as_one_graph_with_the_same_numbers():
    tensors = draw(24, 8, 50, True, torch.float32)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), linear_cross_entropy(*tensors))
    torch.testing.assert_close(gradients(compiled, *tensors), gradients(linear_cross_entropy, *tensors))


def test_nothing_is_computed_on_the_meta_device():
    with torch.device("meta"):
        hidden, head = torch.empty(8, 2048, 512, requires_grad=True), Linear(512, 1 << 17, bias=False)
        loss = head_cross_entropy(head, hidden, torch.empty(8, 2048, dtype=torch.long))
        loss.backward()
    assert loss.shape == () and hidden.grad is not None and head.weight.grad is not None


class Doubled(Linear):
    """A head that is more than its weight, as a quantized one is."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return 2 * super().forward(x, gelu)


@pytest.mark.parametrize("head", [nn.Linear(6, 9), Linear(6, 9, bias=False), Doubled(6, 9), nn.Identity(), torch.exp])
def test_any_head_gives_the_loss_of_its_logits(head):
    hidden, targets = torch.randn(2, 5, 6), torch.randint(6, (2, 5))
    torch.testing.assert_close(head_cross_entropy(head, hidden, targets), cross_entropy(head(hidden), targets))


def test_hooks_of_a_head_are_called():
    head, called = Linear(6, 9), []
    head.register_forward_hook(lambda *_: called.append(True))
    head_cross_entropy(head, torch.randn(2, 5, 6), torch.randint(9, (2, 5)))
    assert called
