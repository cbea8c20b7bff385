"""What becomes known to each library."""

from __future__ import annotations


def register_configuration() -> None:
    """The model type `wavelet_lm`, as AutoConfig finds it in config.json."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from wavelet_ecosystem.transformers_configuration import WaveletConfig

    AutoConfig.register(WaveletConfig.model_type, WaveletConfig)


def register_model() -> None:
    """The model that AutoModelForCausalLM makes of a WaveletConfig."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from wavelet_ecosystem.transformers_configuration import WaveletConfig
    from wavelet_ecosystem.transformers_model import WaveletForCausalLM

    AutoModelForCausalLM.register(WaveletConfig, WaveletForCausalLM)


def register_tokenizer() -> None:
    """The tokenizer that AutoTokenizer makes where there is a WaveletConfig."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    from wavelet_ecosystem.transformers_configuration import WaveletConfig
    from wavelet_ecosystem.transformers_tokenizer import WaveletTokenizer

    AutoTokenizer.register(WaveletConfig, tokenizer_class=WaveletTokenizer)


def register_harness() -> None:
    """The model `wavelet` of lm-evaluation-harness, imported when it is asked for."""
    from lm_eval.api.registry import model_registry

    model_registry.register("wavelet", target="wavelet_ecosystem.harness:WaveletHarness")
