"""Networks and their checkpoints (torch)."""
