"""One round: who is asked, what goes over the wire, how the strategy is called."""
