"""Recall probes: data sets of token ids whose answers stand in the example itself; they say what perplexity hides."""
