"""From an expression to prompt embeddings, and the tokens whose attention counts."""
