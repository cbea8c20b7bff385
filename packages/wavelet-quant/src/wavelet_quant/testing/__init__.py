"""The contracts of the kinds that wavelet-quant brings."""
