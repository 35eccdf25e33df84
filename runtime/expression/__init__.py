"""What an English expression says: its head noun, and words of place and size. Word lists only."""
