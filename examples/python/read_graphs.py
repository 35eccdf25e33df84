"""Run one graph of a bundle with onnxruntime alone: how similar are two expressions?

python examples/python/read_graphs.py runtime/builtin/mini "the green van" "the yellow cat"

docs/bundle.md describes the files, and has a complete reader of this kind.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

folder, *expressions = Path(sys.argv[1]), *sys.argv[2:]
manifest = json.loads((folder / "manifest.json").read_text())
for name, graph in manifest["graphs"].items():
    print(f"{name}: {', '.join(graph['inputs'])} -> {', '.join(graph['outputs'])}")

prompt, graph = manifest["prompt"], manifest["graphs"]["text_encoder"]
tokenizer = Tokenizer.from_file(str(folder / prompt["tokenizer"]))
tokenizer.enable_padding(length=prompt["max_length"], pad_id=prompt["pad_id"])
texts = [prompt["template"].replace("{expression}", each) for each in expressions]
rows = tokenizer.encode_batch(
    [prompt["prefix"] + text + prompt["suffix"] for text in texts], add_special_tokens=False
)
feeds = {
    "input_ids": [row.ids for row in rows],
    "attention_mask": [row.attention_mask for row in rows],
}
session = ort.InferenceSession(folder / graph["file"], providers=["CPUExecutionProvider"])
[embeds] = session.run(
    None, {graph["inputs"][key]["name"]: np.array(value) for key, value in feeds.items()}
)
first, second = embeds.reshape(len(rows), -1)[:2]
print(f"cosine similarity {first @ second / np.linalg.norm(first) / np.linalg.norm(second):.3f}")
