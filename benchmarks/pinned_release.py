r"""`python -m benchmarks.pinned_release`: record what the makers' own code makes of a prompt.

Step1X-Edit's makers pin their libraries (transformers 4.49.0 for 1.0, 4.55.0 for the diffusers
fork of 1.1 and 1.2), and what a prompt becomes depends on them. This runs the makers' files, read
from a checkout, on those releases and on small random checkpoints, and records token ids,
positions and hidden states; rism's are held against them by
tests/export/families/step1x/test_pinned_release.py.

    pip install --no-deps --target T449 transformers==4.49.0 tokenizers==0.21.4 \
        huggingface_hub==0.36.2 qwen_vl_utils==0.0.10 torchvision==0.28.0
    pip install --target T455 httpx
    pip install --no-deps --target T455 transformers==4.55.0 tokenizers==0.21.4 \
        huggingface_hub==0.36.2 torchvision==0.28.0
    python -m benchmarks.pinned_release --old T449 --new T455 --makers Step1X-Edit \
        --fork-1.1 FORK --fork-1.2 FORK -o tests/export/families/step1x/pinned_release.json

Step1X-Edit is a checkout of stepfun-ai/Step1X-Edit; the forks are checkouts of
Peyton-Chen/diffusers, branches step1xedit and step1xedit_v1p2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# Instructions, and the size of the image each is about.
CASES: tuple[tuple[str, tuple[int, int]], ...] = (
    ("remove the green van", (112, 80)),
    ("remove the sign! now", (112, 80)),
    ('remove the sign "STOP!" there', (112, 80)),
    ("remove the “wow!” and the man's hat!", (64, 144)),
    ("remove the dog! ! and 'that!'", (96, 96)),
)
_PIPELINES = {
    "1.1": ("pipeline_step1x_edit", "Step1XEditPipeline"),
    "1.2": ("pipeline_step1x_edit_v1p2", "Step1XEditPipelineV1P2"),
}
_TEXTS = Path(__file__).parents[1] / "export" / "families" / "step1x" / "texts"
_LENGTH = 640
_SHOWN = 160  # characters at a rendered prompt's end


def noise_image(size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return noise of a size: (h, w, 3)."""
    shape = (size_wh[1], size_wh[0], 3)
    return np.random.default_rng(size_wh[0]).integers(0, 256, shape, dtype=np.uint8)


def projected(hidden: torch.Tensor) -> list[float]:
    """Return one number for each of (S, W) hidden states, which any change of it moves."""
    direction = torch.cos(torch.arange(hidden.shape[-1], dtype=torch.float64))
    return [round(value, 5) for value in (hidden.double() @ direction).tolist()]


class _PromptRecorder:
    """Keeps what the makers' code gives the language model, and what it gets."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.seen: dict[str, Any] = {}
        owner = model if hasattr(type(model), "get_rope_index") else model.model
        rope, render = owner.get_rope_index, processor.apply_chat_template

        def positions(*args: Any, **options: Any) -> Any:
            found = rope(*args, **options)
            self.seen["positions"] = found[0]
            return found

        def rendered(*args: Any, **options: Any) -> str:
            text: str = render(*args, **options)
            self.seen["text"] = text
            return text

        owner.get_rope_index, processor.apply_chat_template = positions, rendered
        model.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, _model: Any, _args: Any, given: dict[str, Any], out: Any) -> None:
        self.seen |= {"ids": given["input_ids"], "hidden": out["hidden_states"][-1]}

    def case(self, instruction: str, size_wh: tuple[int, int], drop: int) -> dict[str, Any]:
        """Return what was kept of one prompt, from the first token that is not dropped."""
        ids = self.seen["ids"][0]
        return {
            "instruction": instruction,
            "size_wh": size_wh,
            "rendered": self.seen["text"][-_SHOWN:],
            "tokens": len(ids),
            "ids": ids[drop:].tolist(),
            "positions": self.seen["positions"][:, 0, drop:].tolist(),
            "hidden": projected(self.seen["hidden"][0, drop:]),
        }


def _source(path: Path, name: str, changes: dict[str, str], package: str = "") -> Any:
    """Run a file of the makers' as a module, with some of its constants replaced."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        if old.isdigit() and old not in text:
            raise SystemExit(f"{path} has no {old}: expected the published file")
        text = text.replace(old, new)
    module = types.ModuleType(name)
    module.__package__ = package
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def _small(processor: Any, drop: int) -> dict[str, str]:
    """Return the published ids and lengths, and those of the small tokenizer."""
    ids = processor.tokenizer.convert_tokens_to_ids
    marks = [processor.tokenizer(mark).input_ids for mark in "“”"]
    assert all(len(mark) == 1 for mark in marks), "the small tokenizer has the Chinese quotes"
    return {
        "151653": str(ids("<|vision_end|>")),
        "2073": str(marks[0][0]),
        "854": str(marks[1][0]),
        "217": str(drop),
        "torch.cuda.current_device()": '"cpu"',
        '"cuda"': '"cpu"',
    }


def _makers(makers: Path, folder: Path, said: dict[str, Any]) -> list[dict[str, Any]]:
    """1.0: the makers' conditioner."""
    _stand_in_for_flash_attention()
    from transformers import AutoProcessor

    language = str(folder / "Qwen2.5-VL-7B-Instruct")
    changes = _small(AutoProcessor.from_pretrained(language), said["drop_tokens"])
    changes |= {
        "256 * 28 * 28": str(said["min_pixels"]),
        "324 * 28 * 28": str(said["max_pixels"]),
    }
    conditioner = _source(makers / "modules" / "conditioner.py", "conditioner", changes)
    embedder = conditioner.Qwen25VL_7b_Embedder(language, dtype=torch.float32, device="cpu")
    recorder, found = _PromptRecorder(embedder.model, embedder.processor), []
    for instruction, size_wh in CASES:
        pixels = torch.from_numpy(noise_image(size_wh)).permute(2, 0, 1).float() / 255
        embedder([instruction], [pixels])
        found.append(recorder.case(instruction, size_wh, said["drop_tokens"]))
    return found


def _fork(version: str, folder: Path, said: dict[str, Any]) -> list[dict[str, Any]]:
    """1.1 and 1.2: the pipelines of the makers' diffusers fork."""
    import diffusers
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(
        folder / "processor", min_pixels=said["min_pixels"], max_pixels=said["max_pixels"]
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder / "text_encoder", torch_dtype=torch.float32
    )
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    file, name = _PIPELINES[version]
    package = "diffusers.pipelines.step1x_edit"
    path = Path(diffusers.__file__).parent / "pipelines" / "step1x_edit" / f"{file}.py"
    changes = {} if version == "1.2" else _small(processor, said["drop_tokens"])
    thinker = types.ModuleType(f"{package}.pipeline_step1x_edit_thinker")
    vars(thinker)["Step1XEditThinker"] = None  # needs more packages, and is not asked
    sys.modules[thinker.__name__] = thinker
    module = _source(path, f"{package}.{file}_small", changes, package)
    pipeline: Any = object.__new__(getattr(module, name))
    prefix = (_TEXTS / f"prefix-{'1.2' if version == '1.2' else '1.0'}.txt").read_bytes()
    vars(pipeline).update(
        text_encoder=model,
        processor=processor,
        max_token_length=_LENGTH,
        QWEN25VL_PREFIX=prefix.decode("utf-8"),
        QWEN25VL_PREFIX_LEN=said["drop_tokens"],
    )
    recorder = _PromptRecorder(model, processor)
    found = []
    for instruction, size_wh in CASES:
        image = Image.fromarray(noise_image(size_wh))
        outputs = pipeline._get_qwenvl_embeds([instruction], [image], torch.device("cpu"))
        case = recorder.case(instruction, size_wh, said["drop_tokens"])
        if version == "1.2":
            # Time of each token, and the embeddings that go past the connector.
            length = len(case["ids"])
            case["times"] = outputs[5][0, :length, 0].tolist()
            case["quoted"] = outputs[7][0, :length].tolist()
        found.append(case)
    return found


def _stand_in_for_flash_attention() -> None:
    """Write out flash_attn's functions, which run on GPUs alone, in plain torch."""

    def attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **options: Any
    ) -> torch.Tensor:
        ends = (rest[0] if rest else options["cu_seqlens_q"]).tolist()
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                q[a:b].transpose(0, 1),
                k[a:b].transpose(0, 1),
                v[a:b].transpose(0, 1),
                is_causal=options.get("causal", False),
                scale=options.get("softmax_scale"),
            ).transpose(0, 1)
            for a, b in pairwise(ends)
        ]
        return torch.cat(parts)

    def batched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **options: Any) -> Any:
        return attention(q[0], k[0], v[0], torch.tensor([0, q.shape[1]]), **options)[None]

    def pad(x: torch.Tensor, places: torch.Tensor, batch: int, length: int) -> torch.Tensor:
        out = x.new_zeros(batch * length, *x.shape[1:])
        out[places] = x
        return out.reshape(batch, length, *x.shape[1:])

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    whole, padding, layers, rotary = (
        types.ModuleType(name)
        for name in ("flash_attn", "flash_attn.bert_padding", "flash_attn.layers",
                     "flash_attn.layers.rotary")
    )  # fmt: skip
    vars(whole).update(flash_attn_varlen_func=attention, flash_attn_func=batched)
    vars(padding).update(
        index_first_axis=lambda x, places: x[places], pad_input=pad, unpad_input=None
    )
    vars(rotary).update(apply_rotary_emb=rotate)
    for each in (whole, padding, layers, rotary):
        each.__spec__ = ModuleSpec(each.__name__, None)
        sys.modules[each.__name__] = each
    import transformers.utils as utils
    from transformers.utils import import_utils

    for module in (utils, import_utils):
        vars(module)["is_flash_attn_2_available"] = lambda: True
    from transformers.modeling_utils import PreTrainedModel

    def enabled(_kind: Any, config: Any, *_: Any, **__: Any) -> Any:
        config._attn_implementation = "flash_attention_2"
        return config

    vars_of: Any = PreTrainedModel
    vars_of._check_and_enable_flash_attn_2 = classmethod(enabled)


def _child(version: str, folder: Path, makers: Path) -> None:
    """In the pinned environment: print the cases."""
    # This part of torchvision asks for its operators, which are built for GPUs.
    name = "torchvision._meta_registrations"
    sys.modules[name] = types.ModuleType(name)
    import transformers

    said = json.loads((folder / "rism.json").read_text())
    with torch.no_grad():
        cases = _makers(makers, folder, said) if version == "1.0" else _fork(version, folder, said)
    print(json.dumps({"transformers": transformers.__version__, "cases": cases}))


def main() -> None:
    """Write the checkpoints, run the three versions, put what they give into one file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pinned_release")
    for name in ("--old", "--new", "--makers", "--fork-1.1", "--fork-1.2", "-o"):
        parser.add_argument(name, type=Path, required=True, dest=name.lstrip("-"))
    asked = vars(parser.parse_args())
    from benchmarks.synthetic.qwen_files import make_tokenizer, write_tokenizer
    from benchmarks.synthetic.step1x_small import make_step1x
    from benchmarks.synthetic.step1x_tensors import SMALL

    found: dict[str, Any] = {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as scratch:
        for version in ("1.0", "1.1", "1.2"):
            layout = "original" if version == "1.0" else "diffusers"
            folder = make_step1x(Path(scratch) / version, version, layout=layout)
            if version != "1.0":
                # As published: what a later release saves, an earlier one may not read.
                write_tokenizer(folder / "processor", make_tokenizer(SMALL), published=True)
            paths = [asked["old"]] if version == "1.0" else [asked["new"]]
            if version != "1.0":
                paths.insert(0, asked[f"fork-{version}"] / "src")
            done = subprocess.run(
                [sys.executable, "-P", __file__, version, folder, asked["makers"]],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
                stdout=subprocess.PIPE,
                check=True,
            )
            found[version] = json.loads(done.stdout.splitlines()[-1])
    text = json.dumps(found, ensure_ascii=False, indent=None, separators=(",", ":"))
    asked["o"].write_text(text.replace('{"instruction"', '\n{"instruction"') + "\n", "utf-8")
    print(f"wrote {asked['o']}, {len(text)} characters")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("1.0", "1.1", "1.2"):
        _child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
