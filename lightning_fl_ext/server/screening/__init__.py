"""The checks a reply passes before it counts, and what is said of one that does not."""
