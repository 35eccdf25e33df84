"""What an export will read, write and need, before it starts."""
