"""Optimisation profiles of the tiny bundle's graphs: min, opt, max by logical input name."""

from typing import Any

VAE = {"image": [[1, 3, 8, 8], [1, 3, 96, 160], [1, 3, 256, 256]]}
TEXT = {"input_ids": [[1, 8], [1, 8], [4, 8]], "attention_mask": [[1, 8], [1, 8], [4, 8]]}


def transformer(
    most: int = 4, tokens: tuple[int, int, int] = (1, 240, 300), *, least: int = 1
) -> dict[str, Any]:
    batches = (least, least, most)
    return {
        "clean_latents": [[b, n, 3] for b, n in zip(batches, tokens, strict=True)],
        "noise": [[1, n, 3] for n in tokens],
        "prompt_embeds": [[b, 8, 3] for b in batches],
        "prompt_weights": [[b, 8] for b in batches],
        "positions": [[n, 2] for n in tokens],
    }


FIXED = transformer(2, (240, 240, 240), least=2)
ALL = {"text_encoder": TEXT, "vae_encoder": VAE, "transformer.vectors": transformer()}
