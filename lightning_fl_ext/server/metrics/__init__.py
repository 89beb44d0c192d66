"""A round's metrics: pooled states and reduced numbers of the clients, and the server's own evaluation."""
