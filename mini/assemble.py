"""Make the checkpoint folder of `mini` from a training: `python -m mini.assemble`.

    python -m mini.assemble --training build/mini --out export/builtin/mini

The folder is what `Flux2KleinPipeline.save_pretrained` writes, in float16, and two more files:
`rism.json` (the sizes that differ from the published models) and the model card. The rule of the
confidence comes last, from `rism fit-confidence`.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline
from transformers import Qwen2TokenizerFast

from mini.architecture import CONFIG, build_scheduler
from mini.ground import Learner
from mini.nouns import meanings, plural
from mini.see import Encoders

CARD = Path(__file__).parent / "model_card.md"


def known_words() -> list[str]:
    """Every word of a noun that was trained, in the singular and in the plural."""
    nouns = (*meanings(), "one", "thing", "object")
    said = " ".join(f"{noun} {plural(noun)}" for noun in nouns)
    return sorted(set(re.findall("[a-z]+(?:-[a-z]+)*", said.lower())))


RISM_JSON = {
    "name": "mini",
    "licence": "Apache-2.0",
    "demonstrator": True,
    "scope": {"nouns": known_words(), "flatness": 0.0},
    "size_level": CONFIG.size_level,
    "resize": "always",
    "remainder": "stretch",
    "max_sequence_length": CONFIG.max_sequence_length,
    "text_encoder_out_layers": list(CONFIG.text_out_layers),
    "feature_block": CONFIG.feature_block,
    "tau": 0.8,
}


def main() -> None:
    """Read the trained parts and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Qwen2TokenizerFast.from_pretrained(args.training / "tokenizer")
    encoders = Encoders(tokenizer, None)
    learner = Learner(encoders)
    steps = {}
    for module, part in ((learner, "ground"), (encoders, "draw")):
        state = torch.load(args.training / f"{part}.pt", weights_only=True)
        module.load_state_dict(state["module"])
        steps[part] = state["step"]
    pipeline = Flux2KleinPipeline(
        scheduler=build_scheduler(),
        vae=encoders.vae,
        text_encoder=encoders.text_encoder,
        tokenizer=tokenizer,
        transformer=learner.transformer,
        is_distilled=True,
    ).to(torch.float16)
    shutil.rmtree(args.out, ignore_errors=True)
    pipeline.save_pretrained(args.out, safe_serialization=True)
    (args.out / "rism.json").write_text(json.dumps(RISM_JSON, indent=1) + "\n")
    shutil.copy(CARD, args.out / "README.md")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB after {steps} steps")


if __name__ == "__main__":
    main()
