"""Linear maps: what torch gives, in any form; and which kernel multiplies, if any."""

from typing import Literal

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from wavelet_core import ComponentConfig, ConfigurationError, config, kernels
from wavelet_core.kernels import Kernel, active_kernels, use_kernel
from wavelet_core.linear import SMALLEST_MATRIX, Linear, StackedLinear, linear, stacked_linear
from wavelet_core.plugins import PluginManager
from wavelet_core.registry import Registry


class Recording(Kernel):
    """Accepts all but three rows, and answers with -1."""

    class Config(ComponentConfig):
        kind: Literal["recording"] = "recording"

    def available(self):
        return True

    def accepts(self, x, weight, bias=None):
        return len(x) != 3

    def linear(self, x, weight, bias, gelu):
        return x.new_full((*x.shape[:-1], len(weight)), -1)

    def stacked_linear(self, x, weight):
        return x.new_full((*x.shape[:-1], weight.shape[1]), -1)


class Unavailable(Recording):
    class Config(ComponentConfig):
        kind: Literal["a_first"] = "a_first"

    needs = "a miracle"

    def available(self):
        return False


class Preferred(Recording):
    """Accepts one row, and answers with -2."""

    class Config(ComponentConfig):
        kind: Literal["preferred"] = "preferred"

    priority = 1

    def accepts(self, x, weight, bias=None):
        return len(x) == 1

    def linear(self, x, weight, bias, gelu):
        return x.new_full((*x.shape[:-1], len(weight)), -2)


class Last(Preferred):
    """Accepts everything, and answers with -3."""

    class Config(ComponentConfig):
        kind: Literal["a_last"] = "a_last"

    priority = -1

    def accepts(self, x, weight, bias=None):
        return True

    def linear(self, x, weight, bias, gelu):
        return x.new_full((*x.shape[:-1], len(weight)), -3)


@pytest.fixture
def choose(monkeypatch):
    """Register kernels, and nothing else, and name one in the environment; no kernel has been chosen yet."""

    def choose(*components, name=None):
        registry = Registry()
        monkeypatch.setattr(registry, "_manager", PluginManager())  # that has discovered nothing
        for component in components:
            registry.register("kernel", component)
        for module in (kernels, config):
            monkeypatch.setattr(module, "registry", registry)
        monkeypatch.setattr(kernels, "_chosen", [])
        monkeypatch.delenv("WAVELET_KERNEL", raising=False)
        if name is not None:
            monkeypatch.setenv("WAVELET_KERNEL", name)

    return choose


@pytest.fixture
def recording(choose):
    choose(Recording)


def test_meta_and_fake_tensors_keep_their_kind():
    for mode in (torch.device("meta"), FakeTensorMode()):
        with mode, torch.no_grad():
            out = Linear(512, 512)(torch.zeros(1, 2, 512))
            stacked = StackedLinear(2, 512, 512)(torch.zeros(2, 3, 512))
        assert out.shape == (1, 2, 512)
        assert stacked.shape == (2, 3, 512)


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [((2, 511), (512, 512), 512), ((2, 512), (2, 512, 512), 512), ((2, 512), (512, 512), 511)],
    ids=["other width", "a stack", "other bias"],
)
def test_what_does_not_fit_is_refused_by_torch(x, weight, bias):
    with torch.no_grad(), pytest.raises(RuntimeError):
        linear(torch.zeros(x), torch.zeros(weight), torch.zeros(bias))


def test_a_bias_for_all_outputs_is_left_to_torch():
    with torch.no_grad():
        assert torch.equal(linear(torch.zeros(2, 512), torch.zeros(512, 512), torch.ones(1)), torch.ones(2, 512))


@pytest.mark.parametrize(("x", "weight"), [((1, 2, 512), (2, 512, 512)), ((2, 512), (2, 512, 512))])
def test_stacks_that_do_not_fit_are_refused_by_torch(x, weight):
    with torch.no_grad(), pytest.raises(RuntimeError):
        stacked_linear(torch.zeros(x), torch.zeros(weight))


def test_each_map_of_a_stack_has_its_own_matrix():
    stack = StackedLinear(3, 8, 5)
    assert stack.matrix().shape == (3, 5, 8)
    x = torch.randn(3, 4, 8)
    expected = torch.stack([F.linear(x[s], stack.weight[s]) for s in range(3)])
    torch.testing.assert_close(stack(x), expected)


@torch.no_grad()
def test_the_kernel_multiplies_what_it_accepts(recording):
    side = int(SMALLEST_MATRIX[torch.float32] ** 0.5)
    one, stack = Linear(side, side), StackedLinear(2, side, side)
    for rows, ours in ((2, True), (3, False)):
        x = torch.randn(rows, side)
        assert bool((one(x, gelu=True) == -1).all()) == ours
    assert (stack(torch.randn(2, 3, side)) == -1).all()


@pytest.mark.parametrize("reason", ["gradients", "small matrix", "torch", "nothing registered", "unavailable"])
def test_torch_multiplies_where_no_kernel_is_wanted(choose, reason):
    components = {"nothing registered": [], "unavailable": [Unavailable]}.get(reason, [Recording])
    choose(*components, name="torch" if reason == "torch" else None)
    one = Linear(256, 255 if reason == "small matrix" else 256)
    x = torch.randn(2, 256)
    with torch.set_grad_enabled(reason == "gradients"):
        assert torch.equal(one(x), F.linear(x, one.weight, one.bias))


def test_the_kernels_that_this_machine_can_run_are_asked_in_turn_and_chosen_once(choose):
    choose(Unavailable, Recording, Preferred, Last)
    chosen = active_kernels()
    assert [type(kernel) for kernel in chosen] == [Preferred, Recording, Last]
    assert active_kernels() is chosen
    one = Linear(512, 512)
    with torch.no_grad():
        for rows, answer in ((1, -2), (2, -1), (3, -3)):
            assert (one(torch.zeros(rows, 512)) == answer).all()


def test_a_kernel_is_used_alone_by_name_or_configuration_until_told_otherwise(choose):
    choose(Recording, Preferred, name="torch")
    for kernel, active in (
        ("recording", [Recording]),
        ({"kind": "preferred"}, [Preferred]),
        (Recording.Config(), [Recording]),
        ("torch", []),
    ):
        use_kernel(kernel)
        assert [type(kernel) for kernel in active_kernels()] == active
    use_kernel("recording")
    use_kernel(None)
    assert active_kernels() == ()


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        ("recordin", "kernel: unknown kernel 'recordin'; did you mean 'recording'"),
        ("a_first", "kernel: this machine cannot run the kernel 'a_first': it needs a miracle; 'torch' is for"),
        ({"kind": "recording", "speed": 9}, r"kernel: speed: unknown field. Known fields: kind \(got 9\)"),
        ({"speed": 9}, "kernel: needs `kind`, one of: a_first, preferred, recording"),
        (["recording"], "kernel: must be the name of a kernel or a mapping with `kind`"),
    ],
)
def test_a_kernel_that_cannot_be_used_is_refused_and_changes_nothing(choose, kernel, says):
    choose(Unavailable, Recording, Preferred)
    use_kernel("preferred")
    before = active_kernels()
    with pytest.raises(ConfigurationError, match=says):
        use_kernel(kernel)
    assert active_kernels() is before


@pytest.mark.parametrize(
    ("name", "says"),
    [("recordin", ["WAVELET_KERNEL=recordin", "did you mean 'recording'", "torch"]), ("a_first", ["cannot run"])],
)
def test_a_named_kernel_that_cannot_be_used_is_an_error(choose, name, says):
    choose(Unavailable, Recording, name=name)
    with torch.no_grad(), pytest.raises(ConfigurationError) as refused:
        Linear(512, 512)(torch.zeros(1, 512))
    assert all(part in str(refused.value) for part in says)


def test_nothing_is_chosen_before_a_product_that_could_use_a_kernel(choose):
    choose(name="unknown")
    with torch.no_grad():
        assert Linear(8, 8)(torch.zeros(1, 8)).shape == (1, 8)
    assert Linear(512, 512)(torch.zeros(1, 512)).requires_grad
    assert not kernels._chosen
