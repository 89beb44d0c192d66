"""A client's work in processes of its own: who starts them, what they are told, and what they leave."""
