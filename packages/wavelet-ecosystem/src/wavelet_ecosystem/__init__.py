"""Doors to WaveletLM in other libraries: transformers and lm-evaluation-harness.

Importing the package lets the import of these libraries register our models there, and does nothing else. An installed
`wavelet_ecosystem.pth` imports it at every start of Python, so that nobody has to.
"""

from wavelet_ecosystem.import_hook import install

install()
