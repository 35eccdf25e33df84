"""Optimisation profiles of the tiny bundle's graphs: min, opt, max by logical input name."""

from typing import Any

VAE = {"image": [[1, 3, 8, 8], [1, 3, 96, 160], [1, 3, 256, 256]]}
TEXT = {"input_ids": [[1, 8], [1, 8], [4, 8]], "attention_mask": [[1, 8], [1, 8], [4, 8]]}


def transformer(most: int = 4, tokens: tuple[int, int, int] = (1, 240, 300)) -> dict[str, Any]:
    def rows(*rest: Any) -> list[list[int]]:
        last = [r if isinstance(r, tuple) else (r,) * 3 for r in rest]
        return [[b, *(r[at] for r in last)] for at, b in enumerate((1, 1, most))]

    return {
        "clean_latents": rows(tokens, 3),
        "noise": [[1, n, 3] for n in tokens],
        "prompt_embeds": rows(8, 3),
        "prompt_weights": rows(8),
        "positions": [[n, 2] for n in tokens],
    }


FIXED = {
    "clean_latents": [[2, 240, 3]] * 3,
    "noise": [[1, 240, 3]] * 3,
    "prompt_embeds": [[2, 8, 3]] * 3,
    "prompt_weights": [[2, 8]] * 3,
    "positions": [[240, 2]] * 3,
}
ALL = {"text_encoder": TEXT, "vae_encoder": VAE, "transformer.vectors": transformer()}
