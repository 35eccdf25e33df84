"""The parity gate: an exported graph against PyTorch, per output and on the final mask."""
