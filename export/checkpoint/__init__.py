"""Reading checkpoints: where they are, their files, and weights layer by layer."""
