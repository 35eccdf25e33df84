r"""`python -m benchmarks.pinned_release`: record what the makers' own code makes of a prompt.

Step1X-Edit's makers pin their libraries (transformers 4.49.0 for 1.0, 4.55.0 for the diffusers
fork of 1.1 and 1.2), and what a prompt becomes depends on them. This runs the makers' files on
those releases and on small random checkpoints, and records token ids, positions and hidden states;
tests/export/families/step1x/test_pinned_release.py compares rism's with them.

    pip install --no-deps --target T449 transformers==4.49.0 tokenizers==0.21.4 \
        huggingface_hub==0.36.2 qwen_vl_utils==0.0.10 torchvision==0.28.0
    pip install --target T455 httpx
    pip install --no-deps --target T455 transformers==4.55.0 tokenizers==0.21.4 \
        huggingface_hub==0.36.2 torchvision==0.28.0
    python -m benchmarks.pinned_release T449 T455 Step1X-Edit FORK-1.1 FORK-1.2 FILE

Step1X-Edit is a checkout of stepfun-ai/Step1X-Edit; the forks are checkouts of
Peyton-Chen/diffusers, branches step1xedit and step1xedit_v1p2.
"""

import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
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
_SHOWN = 160  # characters at a rendered prompt's end

Encode = Callable[[str, npt.NDArray[np.uint8]], Any]


def noise_image(size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return noise of a size: (h, w, 3)."""
    shape = (size_wh[1], size_wh[0], 3)
    return np.random.default_rng(size_wh[0]).integers(0, 256, shape, dtype=np.uint8)


def projected(hidden: torch.Tensor) -> list[float]:
    """Return one number for each of (S, W) hidden states, which any change of it moves."""
    direction = torch.cos(torch.arange(hidden.shape[-1], dtype=torch.float64))
    return [round(value, 5) for value in (hidden.double() @ direction).tolist()]


def _record(version: str, model: Any, processor: Any, encode: Encode, drop: int) -> list[Any]:
    """Encode every case; keep what the makers' code gives the language model, and what it gets."""
    seen: dict[str, Any] = {}

    def keeping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            seen[name] = function(*args, **options)
            return seen[name]

        return call

    owner = model if hasattr(type(model), "get_rope_index") else model.model
    owner.get_rope_index = keeping("positions", owner.get_rope_index)
    processor.apply_chat_template = keeping("text", processor.apply_chat_template)

    def keep(_model: Any, _args: Any, given: dict[str, Any], out: Any) -> None:
        seen.update(ids=given["input_ids"][0], hidden=out["hidden_states"][-1][0])

    model.register_forward_hook(keep, with_kwargs=True)
    cases = []
    for instruction, size_wh in CASES:
        outputs = encode(instruction, noise_image(size_wh))
        ids = seen["ids"][drop:].tolist()
        case = {
            "instruction": instruction,
            "size_wh": size_wh,
            "rendered": seen["text"][-_SHOWN:],
            "tokens": len(seen["ids"]),
            "ids": ids,
            "positions": seen["positions"][0][:, 0, drop:].tolist(),
            "hidden": projected(seen["hidden"][drop:]),
        }
        if version == "1.2":
            # Time of each token, and the embeddings that go past the connector.
            case["times"] = outputs[5][0, : len(ids), 0].tolist()
            case["quoted"] = outputs[7][0, : len(ids)].tolist()
        cases.append(case)
    return cases


def _source(path: Path, name: str, changes: dict[str, Any], package: str = "") -> Any:
    """Run a file of the makers' as a module, with some of its constants replaced."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        if old.isdigit() and old not in text:
            raise SystemExit(f"{path} has no {old}: expected the published file")
        text = text.replace(old, str(new))
    module = types.ModuleType(name)
    module.__package__ = package
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def _small(processor: Any, drop: int) -> dict[str, Any]:
    """Return the published ids and lengths, and those of the small tokenizer."""
    quotes = {
        old: processor.tokenizer(mark).input_ids for old, mark in (("2073", "“"), ("854", "”"))
    }
    return {
        "151653": processor.tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        **{old: id_ for old, [id_] in quotes.items()},
        "217": drop,
        "torch.cuda.current_device()": '"cpu"',
        '"cuda"': '"cpu"',
    }


def _makers(makers: Path, folder: Path, said: dict[str, Any]) -> list[Any]:
    """1.0: the makers' conditioner."""
    _stand_in_for_flash_attention()
    from transformers import AutoProcessor

    language = str(folder / "Qwen2.5-VL-7B-Instruct")
    changes = _small(AutoProcessor.from_pretrained(language), said["drop_tokens"])
    changes |= {"256 * 28 * 28": said["min_pixels"], "324 * 28 * 28": said["max_pixels"]}
    conditioner = _source(makers / "modules" / "conditioner.py", "conditioner", changes)
    embedder = conditioner.Qwen25VL_7b_Embedder(language, dtype=torch.float32, device="cpu")

    def encode(instruction: str, image: npt.NDArray[np.uint8]) -> None:
        embedder([instruction], [torch.from_numpy(image).permute(2, 0, 1).float() / 255])

    return _record("1.0", embedder.model, embedder.processor, encode, said["drop_tokens"])


def _fork(version: str, folder: Path, said: dict[str, Any]) -> list[Any]:
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
    thinker = types.ModuleType(f"{package}.pipeline_step1x_edit_thinker")
    vars(thinker)["Step1XEditThinker"] = None  # needs more packages, and is not asked
    sys.modules[thinker.__name__] = thinker
    changes = {} if version == "1.2" else _small(processor, said["drop_tokens"])
    module = _source(path, f"{package}.{file}_small", changes, package)
    prefix = _TEXTS / f"prefix-{'1.2' if version == '1.2' else '1.0'}.txt"
    pipeline: Any = object.__new__(getattr(module, name))
    vars(pipeline).update(
        text_encoder=model,
        processor=processor,
        max_token_length=640,
        QWEN25VL_PREFIX=prefix.read_bytes().decode(),
        QWEN25VL_PREFIX_LEN=said["drop_tokens"],
    )

    def encode(instruction: str, image: npt.NDArray[np.uint8]) -> Any:
        images = [Image.fromarray(image)]
        return pipeline._get_qwenvl_embeds([instruction], images, torch.device("cpu"))

    return _record(version, model, processor, encode, said["drop_tokens"])


def _stand_in_for_flash_attention() -> None:
    """Write out what 1.0 asks of flash_attn, which runs on GPUs alone, in plain torch."""

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

    def pad(x: torch.Tensor, places: torch.Tensor, batch: int, length: int) -> torch.Tensor:
        out = x.new_zeros(batch * length, *x.shape[1:])
        out[places] = x
        return out.reshape(batch, length, *x.shape[1:])

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def batched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **options: Any) -> Any:
        return attention(q[0], k[0], v[0], torch.tensor([0, q.shape[1]]), **options)[None]

    functions: dict[str, dict[str, Any]] = {
        "flash_attn": {"flash_attn_varlen_func": attention, "flash_attn_func": batched},
        "flash_attn.bert_padding": {
            "index_first_axis": lambda x, places: x[places],
            "pad_input": pad,
            "unpad_input": None,
        },
        "flash_attn.layers": {},
        "flash_attn.layers.rotary": {"apply_rotary_emb": rotate},
    }
    for name, own in functions.items():
        sys.modules[name] = module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(own)
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


def main(old: str, new: str, makers: str, fork_11: str, fork_12: str, output: str) -> None:
    """Write the checkpoints, run the three versions, put what they give into one file."""
    from benchmarks.synthetic.qwen_files import make_tokenizer, write_tokenizer
    from benchmarks.synthetic.step1x_small import make_step1x
    from benchmarks.synthetic.step1x_tensors import SMALL

    paths = {"1.0": [old], "1.1": [f"{fork_11}/src", new], "1.2": [f"{fork_12}/src", new]}
    found: dict[str, Any] = {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as scratch:
        for version, path in paths.items():
            layout = "original" if version == "1.0" else "diffusers"
            folder = make_step1x(Path(scratch) / version, version, layout=layout)
            if version != "1.0":
                # As published: what a later release saves, an earlier one may not read.
                write_tokenizer(folder / "processor", make_tokenizer(SMALL), published=True)
            done = subprocess.run(
                [sys.executable, "-P", __file__, version, folder, makers],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                stdout=subprocess.PIPE,
                check=True,
            )
            found[version] = json.loads(done.stdout.splitlines()[-1])
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    Path(output).write_text(text.replace('{"instruction"', '\n{"instruction"') + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("1.0", *_PIPELINES):
        _child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    elif len(sys.argv) == 7:
        main(*sys.argv[1:])
    else:
        sys.exit(__doc__)
