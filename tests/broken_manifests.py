"""Manifests, and lists of a plan's weights, with one thing wrong, for the tests of both readers.

They are the runtime's and the one in C++.

An entry names a key by its way through the manifest, the value that it gets (`MISSING` takes the
key out) and what the runtime's error says; where the C++ reader reads the key too, what that says.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from rism.runtime.bundle.reader import resolve_bundle

Json = dict[str, Any]
Broken = tuple[str, object, str] | tuple[str, object, str, str]
MISSING = object()
FILE = {"sha256": "0" * 64, "size": 10}
SIZES = [(384, 384), (432, 336), (336, 432)]
TENSOR = {"name": "x", "dtype": "float32", "shape": [1]}


def change(data: Json, way: str, value: object) -> Json:
    """Return a manifest with one key changed; a number in the way is a place in a list."""
    changed: Json = copy.deepcopy(data)
    node: Any = changed
    *keys, last = way.split(" ")
    for key in keys:
        node = node[int(key) if isinstance(node, list) else key]
    if value is MISSING:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return changed


def mini() -> Json:
    data: Json = json.loads((resolve_bundle() / "manifest.json").read_text())
    return data


def sized() -> Json:
    """The built-in bundle's manifest as if its graphs had fixed sizes."""
    data = mini()
    graphs = {"text_encoder": data["graphs"].pop("text_encoder")}
    for name, graph in data["graphs"].items():
        for width, height in SIZES:
            fixed = {"height": height, "width": width, "tokens": width * height // 256}
            made = graphs[f"{name}@{width}x{height}"] = copy.deepcopy(graph)
            for tensor in (*made["inputs"].values(), *made["outputs"].values()):
                tensor["shape"] = [fixed.get(side, side) for side in tensor["shape"]]
    data["geometry"]["sizes"] = [list(size) for size in SIZES]
    return {**data, "graphs": graphs}


def with_engine() -> Json:
    """The built-in bundle's manifest with an engine, scales and test vectors."""
    data = mini()
    for name in ("v.plan", "v.json", "v.refit.onnx", "scales.json"):
        data["files"][name] = FILE
    data["files"]["selftest.bin"] = {**FILE, "size": 4 * (768 + 384)}
    image = {"min": [1, 3, 8, 8], "opt": [1, 3, 64, 64], "max": [1, 3, 256, 256]}
    plan = {
        "file": "v.plan", "layers": "v.json", "refit": "v.refit.onnx", "shapes": {"image": image}
    }  # fmt: skip
    data["engines"] = [
        {
            "name": "a", "target": "tensorrt-rtx", "version": "1.7.1.116",
            "platform": "linux-x86_64", "compute_capabilities": ["8.6", "12.0"],
            "precision": "fp16", "stripped": True, "graphs": {"vae_encoder": plan},
        }
    ]  # fmt: skip
    data["calibration"] = {"file": "scales.json", "graph": "transformer"}
    stored = {
        "inputs": {"image": {"dtype": "float32", "shape": [1, 3, 16, 16], "offset": 0}},
        "outputs": {"clean_latents": {"dtype": "float32", "shape": [1, 1, 384], "offset": 3072}},
    }
    data["self_test"] = {
        "file": "selftest.bin", "made_by": "onnxruntime-cpu 1.31.1",
        "graphs": {"vae_encoder": stored},
    }  # fmt: skip
    return data


OUTSIDE = "expected relative paths"
NO_PATH = "no path inside the bundle"
MINI: list[Broken] = [
    ("method confidence bias", "0", "'method.confidence.bias' is '0', expected a number"),
    ("method confidence bias", float("nan"), "'method.confidence.bias' is nan, expected a number"),
    ("method confidence threshold", 1.01, "threshold' is 1.01, expected a number f"),
    ("method confidence threshold", -0.1, "threshold' is -0.1, expected a number f"),
    ("method confidence", {"bias": 1.0}, "'method.confidence.separability' is missing, expected a"),
    ("method confidence", [], "'method.confidence' is a list of 0, expected an object"),
    ("format", "other", "'format' is 'other', expected 'rism-bundle'", "expected 'rism-bundle'"),
    ("schema_version", "2.0", "newer rism (format 2.0, this reads 1.x): install a newer rism-seg",
     "this reader knows format 1"),
    ("schema_version", "17.0", "newer rism (format 17.0", "this reader knows format 1"),
    ("schema_version", 1, "'schema_version' is 1, expected printable text", "expected a string"),
    ("schema_version", "one", "'schema_version' is 'one', expected a version"),
    ("files ../stolen", FILE, OUTSIDE, NO_PATH),
    ("files /etc/passwd", FILE, OUTSIDE, NO_PATH),
    ("files c:stolen", FILE, OUTSIDE, NO_PATH),
    ("files a/../../stolen", FILE, OUTSIDE, NO_PATH),
    ("files a\\b", FILE, OUTSIDE),
    ("files .hidden", FILE, OUTSIDE),
    ("files noise.f32 sha256", "zz", "64 lower-case hexadecimal", "not 64 hexadecimal digits"),
    ("files noise.f32 size", -1, "size' is -1, expected an integer from 0", "noise.f32.size"),
    ("files noise.f32", MISSING, "'noise.file' names 'noise.f32', which 'files' of manif",
     "is not listed"),
    ("prompt tokenizer", "other.json", "names 'other.json', which 'files'", "not among the files"),
    ("prompt tokenizer", "../tok.json", "expected a relative path inside", "not among the files"),
    ("graphs", [], "'graphs' is a list of 0, expected an object", "expected an object"),
    ("graphs transformer.vectors", MISSING, "'default_capture' is 'vectors', expected a capture"),
    ("graphs text_encoder", MISSING, "'graphs.text_encoder' is missing", "no graph 'text_encoder"),
    ("graphs vae_encoder file", "other.onnx", "names 'other.onnx', which 'files' of manif"),
    ("graphs vae_encoder file", "C:\\x.onnx", "expected a relative path"),
    ("graphs vae_encoder inputs", MISSING, "'graphs.vae_encoder.inputs' is missing, expected"),
    ("graphs vae_encoder inputs image dtype", "int4", "image.dtype' is 'int4', expected one"),
    ("graphs vae_encoder inputs image shape", [0], "image.shape' is a list of 1, expected"),
    ("graphs vae_encoder inputs secret", {}, "secret.shape' is missing"),
    ("graphs vae_encoder inputs secret", TENSOR, "secret' is an object, expected only image"),
    ("graphs vae_encoder outputs", {}, "clean_latents' is missing, expected a tensor"),
    ("geometry", [1], "'geometry' is a list of 1, expected an object", "expected an object"),
    ("geometry token_px", MISSING, "token_px' is missing", "has no 'geometry.token_px'"),
    ("geometry token_px", 0, "'geometry.token_px' is 0, expected an integer from 1 to 64"),
    ("geometry token_px", True, "'geometry.token_px' is True, expected an integer"),
    ("geometry token_px", 3, "'geometry.multiple_px' is 16, expected a multiple of token_px"),
    ("geometry multiple_px", "8", "'8', expected an integer", "expected a whole number"),
    ("geometry size_level", 10**30, "is a huge integer, expected", "expected a whole number"),
    ("geometry std", 0, "'geometry.std' is 0, expected a number from 1e-06", "'geometry.std' is 0"),
    ("geometry std", float("nan"), "'geometry.std' is nan, expected a number"),
    ("geometry mean", float("inf"), "'geometry.mean' is inf, expected a number"),
    ("geometry mean", 10**400, "'geometry.mean' is a huge integer, expected a number"),
    ("geometry resample", "magic", "'magic', expected one of", "this reader knows lanczos"),
    ("geometry resize_in", "bits", "one of 'uint8', 'float32'"),
    ("prompt template", "remove it", "expected text with {expression} in it once"),
    ("prompt template", "{expression}\x1b[2J", "'prompt.template' is"),
    ("prompt max_length", 10**6, "'prompt.max_length' is 1000000, expected an integer"),
    ("prompt max_length", MISSING, "'prompt.max_length' is missing"),
    ("prompt drop", -1, "prompt.drop' is -1, expected an integer from 0", "'prompt.drop' is -1"),
    ("prompt padding", "ones", "one of 'tokens', 'zeros', 'none'", "this reader knows tokens"),
    ("prompt unseen_id", -1, "prompt.unseen_id' is -1, expected an integer"),
    ("prompt unseen_position", -1, "unseen_position' is -1, expected an integer"),
    ("prompt grid_offset_px", 1e9, "expected a number from -512 to 512"),
    ("prompt vision", {}, "'prompt.vision.image_token' is missing", "which this reader"),
    ("prompt quotes", {}, "'prompt.quotes.style' is missing", "'prompt.quotes', which this reader"),
    ("prompt quotes", [], "prompt.quotes' is a list of 0, expected an object"),
    ("prompt quotes", {"style": "odd", "start": 0}, "one of 'toggle', 'paired'"),
    ("model name", "x" * 9000, "'model.name' is"),
    ("model name", "\x1b[31mred", "expected printable text"),
    ("model demonstrator", False, "'model.scope' is an object, expected none where 'demonstrator'"),
    ("model scope", [], "'model.scope' is a list of 0, expected an object"),
    ("model scope nouns", [], "'model.scope.nouns' is a list of 0, expected 1 to 1000 words"),
    ("model scope nouns", ["Car"], "'model.scope.nouns' is a list of 1, expected 1 to 1000"),
    ("model scope nouns", ["a", 1], "'model.scope.nouns' is a list of 2, expected 1 to 1000"),
    ("model scope nouns", ["a\n"], "'model.scope.nouns' is a list of 1, expected 1 to 1000"),
    ("method", MISSING, "'method' is missing, expected an object"),
    ("method tau", 1.0, "'method.tau' is 1.0, expected a number from 0 to below 1"),
    ("noise shape", [10**6, 10**6], "'noise.shape' is a list of 2, expected [rows, channels]"),
    ("noise shape", [576, 384, 1], "'noise.shape' is a list of 3, expected [rows, channels]"),
    ("noise shape", [300, 384], "is 884736 bytes, expected 460800 for noise.shape [300, 384]",
     "with the size of 'noise.shape'"),
    ("noise file", "/etc/passwd", "'noise.file' is '/etc/passwd', expected a relative path"),
    ("default_capture", "telepathy", "'default_capture' is 'telepathy', expected one of"),
    ("precision", MISSING, "'precision' is missing, expected an object"),
]  # fmt: skip

SIZED: list[Broken] = [
    ("graphs vae_encoder@432x336", MISSING, "'graphs.vae_encoder@432x336' is missing, expected"),
    ("graphs transformer.vectors@336x432", MISSING, "vectors@336x432' is missing, expected"),
    ("graphs vae_encoder", {}, "expected graphs by size, such as 'vae_encoder@384x384', for 'si"),
    ("graphs vae_encoder@432x336 inputs image shape", [1, 3, 432, 336],
     "takes 'image' of shape [1, 3, 432, 336], expected [1, 3, 336, 432]: export the bundle"),
    ("graphs transformer.scores@336x432 inputs clean_latents shape", [2, 576, 384],
     "takes 'clean_latents' of shape [2, 576, 384], expected ['batch', 567, 384]"),
    *(
        ("geometry sizes", sizes, "expected 1 to 64 different [width, height]")
        for sizes in ([], [[384, 100]], [[384, 384]] * 2, [[384]], [[True, 8]], [[8, 10**9]])
    ),
    *(("geometry sizes", x, "a list of at most 64 entries") for x in ([[8, 8]] * 65, "384x384")),
    ("geometry token_px", 4, "size 384 x 384 makes 9216 tokens, expected at most 576 (noise.sh"),
]  # fmt: skip

ENGINE = "engines 0"
PLAN = f"{ENGINE} graphs vae_encoder"
STORED = "self_test graphs vae_encoder"
OUTPUT = f"{STORED} outputs clean_latents"
WITH_ENGINE: list[Broken] = [
    ("engines", {}, "'engines' is an object, expected a list of at most 64"),
    ("engines", [{}] * 65, "'engines' is a list of 65, expected a list of at most 64"),
    (ENGINE, [], "'engines[0]' is a list of 0, expected an object"),
    (f"{ENGINE} name", "../a", "'engines[0].name' is '../a', expected a name of a-z"),
    (f"{ENGINE} name", "A", "'engines[0].name' is 'A'"),
    (f"{ENGINE} target", "\x1b[2J", "'engines[0].target' is"),
    (f"{ENGINE} version", 1.7, "'engines[0].version' is 1.7, expected a version"),
    (f"{ENGINE} version", "latest", "'engines[0].version' is 'latest'"),
    (f"{ENGINE} platform", None, "'engines[0].platform' is None"),
    (f"{ENGINE} stripped", "no", "'engines[0].stripped' is 'no', expected true"),
    (f"{ENGINE} compute_capabilities", [], "is a list of 0, expected a list of compute"),
    (f"{ENGINE} compute_capabilities", [8.6], "expected a list of compute capabilities"),
    (f"{ENGINE} graphs", {}, "'engines[0].graphs' is an object, expected a plan of at"),
    (f"{ENGINE} graphs", {"nose": {}}, "graphs.nose' is an object, expected a plan of a graph"),
    (f"{PLAN} file", "/a", "graphs.vae_encoder.file' is '/a', expected a relative path"),
    (f"{PLAN} file", "b.plan", "names 'b.plan', which 'files'"),
    (f"{PLAN} refit", 3, "graphs.vae_encoder.refit' is 3, expected a relative path"),
    (f"{PLAN} weights", "w.json", "weights' names 'w.json', which 'files' of manif"),
    (f"{PLAN} weights", "../v.json", "weights' is '../v.json', expected a relative path"),
    (f"{PLAN} shapes", {}, "shapes.image' is missing, expected the shapes of an input of no fixed"),
    (f"{PLAN} shapes tau", {}, "shapes.tau' is an object, expected only inputs of the graph (im"),
    (f"{PLAN} shapes image max", [1, 4, 256, 256],
     "image.max' is a list of 4, expected a shape of the graph's input, [1, 3, 'height', 'width']"),
    (f"{PLAN} shapes image min", [1, 3, 65, 8],
     "image.opt' is a list of 4, expected sizes from those of 'min' to those of 'max'"),
    (f"{PLAN} shapes image opt", [1, 3, 64, -1],
     "image.opt' is a list of 4, expected a list of at most 8 sizes, 1 to"),
    ("calibration", "scales.json", "'calibration' is 'scales.json', expected an object"),
    ("calibration file", "other.json", "names 'other.json', which 'files' of manif"),
    ("self_test file", "../x", "'self_test.file' is '../x', expected a relative path"),
    ("self_test made_by", 7, "'self_test.made_by' is 7, expected printable text"),
    (f"{STORED} inputs", {}, "inputs.image' is missing, expected every input of the graph"),
    (f"{STORED} outputs", {}, "outputs' is an object, expected at least one output"),
    (f"{OUTPUT} offset", 3073, "offset' is 3073, expected 1536 bytes inside a file of 4608"),
    (f"{OUTPUT} offset", -1, "offset' is -1, expected an integer from 0"),
    (f"{OUTPUT} shape", [1, 2**31, 384], "expected 3298534883328 bytes inside a file of 4608"),
    (f"{OUTPUT} shape", [1, 4, 4], "shape' is a list of 3, expected a shape of the graph's tensor"),
    (f"{OUTPUT} dtype", "float16", "dtype' is 'float16', expected the graph's, 'float32'"),
    ("files selftest.bin size", 2**33, "expected a file of at most 4294967296 bytes"),
]  # fmt: skip

# Of a bundle whose text encoder sees the image, see tests/runtime/vision_language.py.
VISION = "prompt vision"
EYE = "graphs vision_encoder"
LOOKING: list[Broken] = [
    (EYE, MISSING, "'graphs.vision_encoder' is missing, expected"),
    (f"{EYE} outputs", {}, "outputs.image_embeds' is missing"),
    (f"{EYE} inputs grid", TENSOR, "expected only pixel_values, patch_positions"),
    ("prompt vision", None, "'prompt.positions' is 'grid', expected 'none'"),
    ("prompt positions", "none", "inputs.prompt_positions' is an object, expected only clean_lat"),
    (f"{VISION} max_pixels", 1, "max_pixels' is 1, expected at least"),
    (f"{VISION} std", [0, 1, 1], "prompt.vision.std.r' is 0, expected"),
    (f"{VISION} mean", [0.5], "mean' is a list of 1, expected three"),
    (f"{VISION} merge", 0, "merge' is 0, expected an integer from"),
    (f"{VISION} patch_px", 2**40, "expected an integer from 1 to"),
    (f"{VISION} image_token", MISSING, "vision.image_token' is missing"),
    (f"{VISION} arithmetic", "mine", "one of 'pillow', 'torchvision'"),
    ("prompt quotes", {"style": "paired"}, "prompt.quotes.start' is missing"),
    ("geometry resize", "shrink", "rounding' is 'ceil', expected 'floor'"),
]

LIST = "plan.weights.json"


def list_weights(bundle: Path, text: str) -> None:
    """Put a list of weights that a plan would take into a bundle."""
    (bundle / LIST).write_text(text)
    data = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    data["files"][LIST] = {"sha256": digest, "size": len(text)}
    (bundle / "manifest.json").write_text(json.dumps(data))


def weight(**keys: Any) -> Json:
    place = {"file": "vae_encoder.weights", "offset": 64, "length": 96}
    return {**place, "dtype": "float16", "shape": [6, 8], **keys}


SIZE = mini()["files"]["vae_encoder.weights"]["size"]
# A weight, and what both readers say of the list that has it under the name "w".
WEIGHTS: list[Broken] = [
    ("outside", weight(file="../manifest.json"), "'w.file' is '../manifest.json', expected a rel",
     "names '../manifest.json', which is not among"),
    ("unlisted", weight(file="other"), "'w.file' names 'other', which 'files' of manif",
     "names 'other', which is not among the files"),
    ("before", weight(offset=-64), f"'w.offset' is -64, expected an integer from 0 to {SIZE}",
     "'w.offset' is -64, expected a whole number from 0"),
    ("beyond", weight(offset=2**63), "'w.offset' is a huge integer, expected an integer from",
     "'w.offset' is 9223372036854775808, expected a whole number"),
    ("across", weight(offset=SIZE - 95), f"expected 96 bytes inside a file of {SIZE}",
     f"in the shape that is given at {SIZE - 95} of {SIZE}"),
    ("long", weight(length=SIZE + 1), f"expected an integer from 1 to {SIZE}",
     f"'w.length' is {SIZE + 1}, expected a whole number from 1"),
    ("empty", weight(length=0), "'w.length' is 0, expected an integer from 1"),
    ("float", weight(offset=0.0), "'w.offset' is 0.0, expected an integer from"),
    ("dtype", weight(dtype="float64"), "'w.dtype' is 'float64', expected one of 'float32'",
     "'w.dtype' is 'float64', this reader knows float32, int64"),
    ("wider", weight(dtype="float32"), "expected sizes that make 96 bytes of float32"),
    ("shape", weight(shape=[6, 9]), "expected sizes that make 96 bytes of float16",
     "no 96 bytes of float16 in the shape"),
    ("odd", weight(length=97), "make 97 bytes of float16", "no 97 bytes of float16 in the shape"),
    ("wraps", weight(shape=[2**31 - 1] * 8), "make 96 bytes", "no 96 bytes of float16 in"),
    ("rank", weight(shape=[1] * 9), "is a list of 9, expected a list of at most 8"),
    ("missing", {"file": "vae_encoder.weights"}, "'w.dtype' is missing",
     f"{LIST} has no 'w.offset'"),
    ("kind", 7, "'w' is 7, expected an object", "expected an object"),
]  # fmt: skip
# Whole lists.
LISTS: list[Broken] = [
    ("empty", "", "is not readable JSON (Expecting value", f"'{LIST}' cannot be read"),
    ("list", "[]", "the top level is a list of 0, expected an object", "expected an object"),
    ("deep", "[" * 100_000, "is not readable JSON ("),
    ("digits", '{"w": {"offset": ' + "9" * 5000 + "}}", "is not readable JSON (Exceeds"),
    ("long", " " * (2**24 + 1), "has 16777217 bytes, expected at most 16777216"),
    ("many", json.dumps({f"w{at}": 0 for at in range(4097)}),
     "the top level has 4097 entries, expected at most 4096",
     "lists 4097 weights, expected at most"),
]  # fmt: skip
