"""The command's order of samplers, and its recipe."""

from wavelet_cli.sampler_presets import SAMPLER_ORDER, STRATEGIES, in_order
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings


def test_strategies_are_in_the_documented_order():
    assert [sampler["kind"] for sampler in in_order(STRATEGIES)] == ["repetition_penalty", "entropy_adaptive", "top_p"]
    settings = parse(GenerationSettings, {"samplers": in_order(STRATEGIES)})
    penalty, adaptive, top_p = settings.samplers
    assert (penalty.penalty, adaptive.minimum, adaptive.maximum, top_p.p) == (1.2, 0.3, 0.9, 0.85)
    assert set(STRATEGIES) <= set(SAMPLER_ORDER)
