"""A tiny bundle, made on the spot: three-channel latents, words that are colours.

The text encoder turns a colour word into that colour; attention is the product of a token's
colour and the words'. So "red" finds the red part of an image, and NumPy can say exactly how.
"""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

import rism  # noqa: F401  # before a test imports onnxruntime: it turns its telemetry off
from tests.fresh_imports import forget_modules  # noqa: F401

if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core, and PyTorch would take all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts its background jobs, such as a run of these tests, with SIGINT
# ignored, nohup ignores SIGHUP, and whatever they start inherits that. Of a handler a new program
# inherits nothing.
for _number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler)

Reseal = Callable[..., Path]
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "remove", "the", "red", "green", "blue", "nothing"]
N_P, NOISE_ROWS = 8, 300
EMBEDDING = np.zeros((len(WORDS), 3), np.float32)
EMBEDDING[6:9] = np.eye(3) * 1.5 - 0.5

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
TRANSFORMER_INPUTS = (
    "float[batch, n_v, 3] clean, float[1, n_v, 3] noise, float[batch, 8, 3] embeds, "
    "float[batch, 8] w, float[n_v, 2] positions"
)
BODY = """
    w3 = Unsqueeze(w, last)
    words = Mul(embeds, w3)
    want = ReduceSum<keepdims=1>(words, one)
    want_t = Transpose<perm=[0, 2, 1]>(want)
    a_1 = MatMul(clean, want_t)
    a_2 = Mul(a_1, two)
    a_n = Concat<axis=2>(a_1, a_2)
    a = Transpose<perm=[0, 2, 1]>(a_n)
    clean_t = Transpose<perm=[0, 2, 1]>(clean)
    like = MatMul(clean, clean_t)
    t = Softmax<axis=-1>(like)
    ta_n = MatMul(t, a_n)
    ta = Transpose<perm=[0, 2, 1]>(ta_n)
    far = ReduceMean<axes=[1], keepdims=1>(positions)
    small = Mul(far, thousandth)
    noise_small = Mul(noise, thousandth)
    f_0 = Add(clean, noise_small)
    features = Add(f_0, small)
"""
SCORES = """
    sum_a = ReduceSum<keepdims=0>(a, one)
    sum_ta = ReduceSum<keepdims=0>(ta, one)
    lo_a = ReduceMin<axes=[1], keepdims=1>(sum_a)
    hi_a = ReduceMax<axes=[1], keepdims=1>(sum_a)
    up_a = Sub(sum_a, lo_a)
    span_a = Sub(hi_a, lo_a)
    coarse = Div(up_a, span_a)
    lo = ReduceMin<axes=[1], keepdims=1>(sum_ta)
    hi = ReduceMax<axes=[1], keepdims=1>(sum_ta)
    up = Sub(sum_ta, lo)
    span = Sub(hi, lo)
    refined = Div(up, span)
    f_len = ReduceL2<axes=[2], keepdims=1>(features)
    f = Div(features, f_len)
    inside = Greater(refined, tau)
    m = Cast<to=1>(inside)
    m3 = Unsqueeze(m, last)
    rest = Sub(single, m3)
    fg_all = Mul(f, m3)
    fg_sum = ReduceSum<keepdims=1>(fg_all, one)
    fg_n = ReduceSum<keepdims=1>(m3, one)
    fg = Div(fg_sum, fg_n)
    bg_all = Mul(f, rest)
    bg_sum = ReduceSum<keepdims=1>(bg_all, one)
    bg_n = ReduceSum<keepdims=1>(rest, one)
    bg = Div(bg_sum, bg_n)
    p = Sub(fg, bg)
    p_t = Transpose<perm=[0, 2, 1]>(p)
    s3 = MatMul(f, p_t)
    scores = Squeeze(s3, last)
    squares = Mul(scores, scores)
    J = ReduceMean<axes=[1], keepdims=0>(squares)
"""


def write_graph(file: Path, signature: str, body: str, weights: dict[str, Any]) -> None:
    import onnx.parser  # only here and below: tests of the GPU's kernels need none
    from onnx import numpy_helper

    name = file.stem.replace(".", "_")
    model = onnx.parser.parse_model(f"{HEADER} {name} {signature} {{ {body} }}")
    for key, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    onnx.save_model(model, file)


def write_vae_encoder(folder: Path) -> None:
    write_graph(
        folder / "vae_encoder.onnx",
        "(float[1, 3, h, w] image) => (float[1, n_v, 3] clean_latents)",
        """pooled = AveragePool<kernel_shape=[8, 8], strides=[8, 8]>(image)
           rows = Reshape(pooled, flat)
           clean_latents = Transpose<perm=[0, 2, 1]>(rows)""",
        {"flat": np.array([1, 3, -1])},
    )


def _write_graphs(folder: Path) -> None:
    write_vae_encoder(folder)
    write_graph(
        folder / "text_encoder.onnx",
        "(int64[batch, 8] input_ids, int64[batch, 8] attention_mask) => (float[batch, 8, 3] e)",
        """all = Gather(table, input_ids)
           m = Cast<to=1>(attention_mask)
           m3 = Unsqueeze(m, last)
           e = Mul(all, m3)""",
        {"last": np.array([2])},
    )
    _externalise(folder / "text_encoder.onnx", "table", EMBEDDING, "text_encoder.weights")
    constants = {
        "one": np.array([1]),
        "last": np.array([2]),
        "two": np.float32(2),
        "thousandth": np.float32(1e-3),
    }
    outputs = {
        "vectors": ("float[batch, 2, n_v] a, float[batch, 2, n_v] ta", ""),
        "matrices": ("float[batch, 2, n_v] a, float[batch, 2, n_v, n_v] ts", MATRICES),
    }
    for mode, (signature, extra) in outputs.items():
        write_graph(
            folder / f"transformer.{mode}.onnx",
            f"({TRANSFORMER_INPUTS}) => ({signature}, float[batch, n_v, 3] features, "
            "float[batch, n_v, 8] per_token)",
            BODY + extra + TOKENS,
            constants,
        )
    write_graph(
        folder / "transformer.scores.onnx",
        f"({TRANSFORMER_INPUTS}, float[1] tau) => (float[batch, n_v] scores, "
        "float[batch, n_v] coarse, float[batch, n_v] refined, float[batch] J)",
        BODY + SCORES,
        {**constants, "single": np.float32(1)},
    )


TOKENS = """
    words_t = Transpose<perm=[0, 2, 1]>(embeds)
    per_token = MatMul(clean, words_t)
"""
MATRICES = """
    t4 = Unsqueeze(t, one)
    ts = Concat<axis=1>(t4, t4)
"""


def _externalise(file: Path, name: str, value: np.ndarray, location: str) -> None:
    """Add an initializer whose bytes lie in another file."""
    import onnx
    from onnx.external_data_helper import set_external_data

    model = onnx.load(file, load_external_data=False)
    tensor = onnx.numpy_helper.from_array(value, name)
    set_external_data(tensor, location, offset=0, length=value.nbytes)
    tensor.ClearField("raw_data")
    model.graph.initializer.append(tensor)
    (file.parent / location).write_bytes(value.tobytes())
    file.write_bytes(model.SerializeToString())


# Logical names of tensors that graphs call otherwise.
LOGICAL = {
    "clean": "clean_latents", "embeds": "prompt_embeds", "e": "prompt_embeds",
    "w": "prompt_weights", "mask": "prompt_mask", "placed": "prompt_positions",
    "a": "attention_vectors", "ta": "propagated_vectors", "ts": "transition_matrices",
    "per_token": "token_attention", "coarse": "coarse_attention", "refined": "refined_attention",
    "J": "separability",
}  # fmt: skip


def graph_entry(file: Path) -> dict[str, Any]:
    """What the manifest says of a graph, read from its file."""
    import onnx

    def tensors(values: Iterable[Any]) -> dict[str, Any]:
        found = {}
        for value in values:
            kind = value.type.tensor_type
            found[LOGICAL.get(value.name, value.name)] = {
                "name": value.name,
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
                "shape": [dim.dim_param or dim.dim_value for dim in kind.shape.dim],
            }
        return found

    graph = onnx.load(file, load_external_data=False).graph
    return {"file": file.name, "inputs": tensors(graph.input), "outputs": tensors(graph.output)}


def tiny_manifest(graphs: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "rism-bundle",
        "schema_version": "1.0",
        "model": {"name": "tiny", "family": "test"},
        "created_with": {"rism": "0.1.0"},
        "precision": {"compute": "float32", "storage": "float32"},
        "geometry": {
            "size_level": 128, "resize": "always", "remainder": "stretch", "multiple_px": 8,
            "token_px": 8, "resample": "lanczos", "max_aspect": 8.0, "mean": 0.5, "std": 0.5,
        },
        "prompt": {
            "template": "remove {expression}", "prefix": "<s> ", "suffix": " </s>",
            "max_length": N_P, "pad_id": 0, "tokenizer": "tokenizer.json",
        },
        "method": {
            "tau": 0.8, "timestep": 1.0, "double_blocks": 1, "single_blocks": 1,
            "feature_block": 1, "feature_site": "mmsa", "feature_dim": 3,
            "prototype": "equation",
        },
        "noise": {"file": "noise.f32", "dtype": "float32", "shape": [NOISE_ROWS, 3]},
        "default_capture": "vectors",
        "graphs": graphs,
        "files": {},
    }  # fmt: skip


def _tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:4]])
    # A tokenizer file may ask for this; a reader must not cut an expression because of it.
    tokenizer.enable_truncation(3)
    return tokenizer


def seal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Write the manifest anew with true sizes and hashes, then apply a change to it."""
    old = folder / "manifest.json"
    data = json.loads(old.read_text())
    data["files"] = {
        file.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink() and file != old
    }
    if change is not None:
        change(data)
    old.write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the folder of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(name, str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def tiny_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    folder.mkdir()
    _write_graphs(folder)
    (folder / "tokenizer.json").write_text(_tokenizer().to_str())
    noise = np.random.default_rng(0).standard_normal((NOISE_ROWS, 3), dtype=np.float32)
    (folder / "noise.f32").write_bytes(noise.astype("<f4").tobytes())
    names = ["text_encoder", "vae_encoder"]
    names += [f"transformer.{mode}" for mode in ("vectors", "matrices", "scores")]
    graphs = {name: graph_entry(folder / f"{name}.onnx") for name in names}
    (folder / "manifest.json").write_text(json.dumps(tiny_manifest(graphs)))
    return seal(folder)


@pytest.fixture
def tiny_bundle(tiny_master: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_master, tmp_path / "tiny")


def _fixed(source: Path, file: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Write a graph with fixed sizes in the place of free ones; return what a manifest says."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    file.write_bytes(model.SerializeToString())
    return graph_entry(file)


def fix_sizes(folder: Path, sizes: list[tuple[int, int]], *, batch: int | None) -> Path:
    """Turn a bundle's graphs into ones of fixed sizes, as a static export writes them.

    None leaves the batch free.
    """
    data = json.loads((folder / "manifest.json").read_text())
    graphs = {"text_encoder": data["graphs"].pop("text_encoder")}
    side_px = data["geometry"]["token_px"]
    for width, height in sizes:
        tokens = (width // side_px) * (height // side_px)
        fixed = dict.fromkeys(("h", "height"), height) | dict.fromkeys(("w", "width"), width)
        fixed |= dict.fromkeys(("n_v", "tokens"), tokens)
        fixed |= {} if batch is None else {"batch": batch}
        for name, entry in data["graphs"].items():
            file = folder / f"{name}.{width}x{height}.onnx"
            graphs[f"{name}@{width}x{height}"] = _fixed(folder / entry["file"], file, fixed)
    for entry in data["graphs"].values():
        (folder / entry["file"]).unlink()

    def change(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = "1.1"
        manifest["geometry"]["sizes"] = [list(size) for size in sizes]
        manifest["graphs"] = graphs

    return seal(folder, change)


def fix_batch(folder: Path, name: str, batch: int) -> None:
    """Give a graph, and what the manifest says of it, a fixed batch."""
    data = json.loads((folder / "manifest.json").read_text())
    file = folder / data["graphs"][name]["file"]
    data["graphs"][name] = _fixed(file, file, {"batch": batch})
    (folder / "manifest.json").write_text(json.dumps(data))


@pytest.fixture
def static_bundle(tiny_bundle: Path) -> Path:
    """The tiny bundle at three fixed sizes, two expressions at a time."""
    return fix_sizes(tiny_bundle, [(128, 128), (160, 96), (96, 160)], batch=2)


@pytest.fixture
def reseal() -> Reseal:
    return seal


@pytest.fixture
def externalise() -> Callable[..., None]:
    return _externalise


@pytest.fixture
def manifest_data(tiny_master: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((tiny_master / "manifest.json").read_text())
    return data


@pytest.fixture
def colours() -> np.ndarray:
    """Left half red, right half blue, a green square in the middle: (96, 160, 3) uint8."""
    image = np.zeros((96, 160, 3), np.uint8)
    image[:, :80] = (220, 20, 20)
    image[:, 80:] = (20, 20, 220)
    image[32:64, 60:100] = (20, 220, 20)
    return image


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graph files that were loaded, in order."""
    from rism.runtime.engines import onnxruntime

    files: list[str] = []
    real = onnxruntime.open_session

    def session(file: Path, *arguments: Any, **options: Any) -> Any:
        files.append(file.name)
        return real(file, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "open_session", session)
    return files


OURS = ("rism", "tests", "benchmarks", "mini")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of `-m gpu`, skip files that import what is not installed; whoever tests all needs all."""
    report = yield
    if report.failed and str(collector.config.getoption("markexpr")).startswith("gpu"):
        error = report.call.excinfo.value
        while error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith(OURS):
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 1, f"Skipped: {error.name} is not installed")
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, so that the plain command is the whole one.

    Workers take a file at a time, those with slow tests first, so that none is left for the end.
    """
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
        items.sort(key=lambda item: item.path not in slow)
