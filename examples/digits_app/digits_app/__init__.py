"""Handwritten digits, learned across sites with Lightning and Flower."""
