"""The contracts of optimizers, schedules and data sets, for `wavelet_core.testing.check_component`."""
