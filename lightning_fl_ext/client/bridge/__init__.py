"""The callback that turns a local fit into a client's part of a round."""
