"""Gates that have closed, removed for good: the module is followed once, and what no output needs is cut."""
