"""Masks on the wire: what of a masked module travels up and down, and what a client holds between rounds."""
