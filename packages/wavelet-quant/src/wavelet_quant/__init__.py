"""Weight formats for WaveletLM and the kernels that multiply with them."""

from importlib.metadata import version

from wavelet_quant.quantizer import QuantizedMatrix, quantize, weight_bytes
from wavelet_quant.recipe import Recipe, load_recipe, preset_recipes
from wavelet_quant.weight_format import StoredMatrix, WeightFormat

__version__ = version("wavelet-quant")
__all__ = [
    "QuantizedMatrix",
    "Recipe",
    "StoredMatrix",
    "WeightFormat",
    "load_recipe",
    "preset_recipes",
    "quantize",
    "weight_bytes",
]
