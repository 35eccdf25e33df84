"""What this machine has, and whether its engines compute what the model does."""
