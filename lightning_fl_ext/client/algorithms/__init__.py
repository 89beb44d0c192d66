"""The client's half of federated algorithms: what a server's strategy asks local training to do besides."""
