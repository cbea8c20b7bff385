"""The contract of kernels, for `wavelet_core.testing.check_component`."""
