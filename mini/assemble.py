"""Make what is built in from a training.

    python -m mini.assemble checkpoint build/mini -o export/builtin/mini
    rism export --model mini --noisy-grid 2 --capture vectors,matrices,scores -o build/bundle
    python -m mini.sets --sets "seen styles" absent --split tuning --out build/sets
    rism eval build/sets/scenes.jsonl --bundle build/bundle -o build/eval
    rism fit-confidence build/eval --bundle build/bundle --lost 0.02
    python -m mini.assemble checkpoint build/mini -o export/builtin/mini --fitted build/bundle
    rism export --model mini --noisy-grid 2 --capture vectors,matrices,scores -o build/bundle
    python -m mini.assemble bundle build/bundle -o runtime/builtin/mini

The checkpoint's folder is what `Flux2KleinPipeline.save_pretrained` writes, in float16, and two
more files: `rism.json` (the sizes that differ from the published models, and the rule of the
confidence) and the model card. The bundle is without its self-test, which would double its size.
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
from rism.runtime.diagnostics.selftest import FILE as SELF_TEST

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
    "scope": {"nouns": known_words()},
    "size_level": CONFIG.size_level,
    "resize": "always",
    "remainder": "stretch",
    "max_sequence_length": CONFIG.max_sequence_length,
    "text_encoder_out_layers": list(CONFIG.text_out_layers),
    "feature_block": CONFIG.feature_block,
    "tau": 0.8,
}


def write_checkpoint(training: Path, out: Path, fitted: Path | None) -> None:
    """Write the checkpoint of a training, with the rule of a bundle of it."""
    tokenizer = Qwen2TokenizerFast.from_pretrained(training / "tokenizer")
    encoders = Encoders(tokenizer, None)
    learner = Learner(encoders)
    for module, part in ((learner, "ground"), (encoders, "draw")):
        state = torch.load(training / f"{part}.pt", weights_only=True)
        module.load_state_dict(state["module"])
        print(f"{part}: {state['step']} steps in {state['elapsed'] / 60:.0f} minutes")
    pipeline = Flux2KleinPipeline(
        scheduler=build_scheduler(),
        vae=encoders.vae,
        text_encoder=encoders.text_encoder,
        tokenizer=tokenizer,
        transformer=learner.transformer,
        is_distilled=True,
    ).to(torch.float16)
    settings = dict(RISM_JSON)
    if fitted is not None:
        manifest = json.loads((fitted / "manifest.json").read_text())
        settings["confidence"] = manifest["method"]["confidence"]
    shutil.rmtree(out, ignore_errors=True)
    pipeline.save_pretrained(out, safe_serialization=True)
    (out / "rism.json").write_text(json.dumps(settings, indent=1) + "\n")
    shutil.copy(CARD, out / "README.md")


def copy_bundle(bundle: Path, out: Path) -> None:
    """Copy a bundle without its self-test."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["self_test"], manifest["files"][SELF_TEST]
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(bundle, out, ignore=shutil.ignore_patterns(SELF_TEST))
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Write one of the two folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("checkpoint", "bundle"))
    parser.add_argument("source", type=Path, help="the folder of a training, or a bundle")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--fitted", type=Path, help="a bundle with a rule of the confidence")
    args = parser.parse_args()
    if args.what == "checkpoint":
        write_checkpoint(args.source, args.out, args.fitted)
    else:
        copy_bundle(args.source, args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
