"""Epochs and outcomes of a fit: which are kept, and where."""
