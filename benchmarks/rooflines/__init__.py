"""The least time that a stage can take on a card."""
