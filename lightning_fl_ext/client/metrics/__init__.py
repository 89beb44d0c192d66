"""Metric states for the server to pool, and the names under which the module logs them."""
