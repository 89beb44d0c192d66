"""What a run leaves on disk: checkpoints to go on from, the ledger, and the lock of its folder."""
