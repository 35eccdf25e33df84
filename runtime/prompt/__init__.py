"""From an expression to prompt embeddings, and the weights of prompt tokens."""
