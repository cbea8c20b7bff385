"""Registrations that run when another library's module has been imported.

Every start of Python imports this, so it imports nothing that Python has not loaded by then.
"""

import sys

# What is called after the import of a module, as module:function.
REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": "wavelet_ecosystem.registration:register_configuration",
    "transformers.models.auto.modeling_auto": "wavelet_ecosystem.registration:register_model",
    "transformers.models.auto.tokenization_auto": "wavelet_ecosystem.registration:register_tokenizer",
    "lm_eval.models": "wavelet_ecosystem.registration:register_harness",
}


class Finder:
    """Finds the modules of REGISTRATIONS as the other finders do, and lets their loaders register us afterwards."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name not in REGISTRATIONS:
            return None
        for finder in sys.meta_path:
            if finder is not cls and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader.exec_module = _then_register(name, spec.loader.exec_module)  # type: ignore[method-assign]
                return spec
        return None


def install() -> None:
    """Register us wherever these libraries are imported from now on, and where they are imported already."""
    if Finder in sys.meta_path:
        return
    sys.meta_path.insert(0, Finder)
    for name in REGISTRATIONS:
        if name in sys.modules:
            _register(name)


def _then_register(name, exec_module):  # type: ignore[no-untyped-def]
    def exec_and_register(module):  # type: ignore[no-untyped-def]
        exec_module(module)
        _register(name)

    return exec_and_register


def _register(name: str) -> None:
    from importlib import import_module

    module, _, function = REGISTRATIONS[name].partition(":")
    try:
        getattr(import_module(module), function)()
    except Exception as error:  # the other library works without us
        import warnings

        library = name.partition(".")[0]
        warnings.warn(
            f"wavelet-ecosystem cannot register WaveletLM with this version of {library}: {error!r}", stacklevel=2
        )
