"""Embeddings on disk: right or absent, whatever happens to the folder."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import BundleError, OutputError, Segmenter
from rism.runtime.bundle.manifest import Manifest, parse_manifest
from rism.runtime.prompt.embedding_cache import EmbeddingCache
from tests.paths import ROOT

ENTRY = 128 + 8 * 3 * 4
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def manifest(manifest_data: dict[str, Any]) -> Manifest:
    return parse_manifest(manifest_data)


def number(instruction: str) -> np.ndarray:
    """An embedding that can be warnings from every other."""
    seed = int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:4])
    return np.random.default_rng(seed).standard_normal((8, 3), dtype=np.float32)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def test_what_was_put_comes_back_bit_by_bit(tmp_path: Path, manifest: Manifest) -> None:
    cache = EmbeddingCache(tmp_path / "new" / "deep", manifest, provider="cpu")
    assert cache.get("remove the red") is None
    cache.put("remove the red", number("a"))
    cache.put("remove the blue", number("b"))
    again = EmbeddingCache(tmp_path / "new" / "deep", manifest, provider="cpu")
    for instruction, wanted in (("remove the red", "a"), ("remove the blue", "b")):
        found = again.get(instruction)
        assert found is not None and found.dtype == np.float32
        assert found.tobytes() == number(wanted).tobytes()
        assert not found.flags.writeable
    assert again.get("remove the  red") is None
    written = [entry.read_bytes() for entry in entries(tmp_path / "new" / "deep")]
    assert sorted(written) == sorted(saved(number(wanted)) for wanted in "ab")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda d: d["files"]["text_encoder.onnx"].update(sha256="0" * 64), False),
        (lambda d: d["files"]["text_encoder.weights"].update(sha256="0" * 64), False),
        (lambda d: d["files"]["tokenizer.json"].update(sha256="0" * 64), False),
        (lambda d: d["prompt"].update(prefix="<s> <s>"), False),
        (lambda d: d["prompt"].update(drop=1), False),
        (lambda d: d["prompt"].update(max_length=9), False),
        (lambda d: d["files"]["transformer.vectors.onnx"].update(sha256="0" * 64), True),
        (lambda d: d["method"].update(tau=0.5), True),
        (lambda d: d["prompt"].update(template="segment {expression}"), True),
    ],
)
def test_a_name_has_all_that_changes_an_embedding(
    tmp_path: Path, manifest_data: dict[str, Any], manifest: Manifest, change: Change, same: bool
) -> None:
    cache = EmbeddingCache(tmp_path, manifest, provider="cpu")
    cache.put("x", number("x"))
    assert EmbeddingCache(tmp_path, manifest, provider="cuda").get("x") is None
    assert cache.get("x", image="another") is None
    change(manifest_data)
    other = EmbeddingCache(tmp_path, parse_manifest(manifest_data), provider="cpu")
    assert (other.get("x") is not None) == same


def saved(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


SOUND = saved(number("x"))
BAD: dict[str, bytes] = {
    "cut short": SOUND[:-1],
    "longer": SOUND + b"x",
    "no header": bytes(ENTRY),
    "another shape": saved(number("x").reshape(3, 8)),
    "float64": saved(number("x").astype(np.float64)[:, :1].repeat(3, 1)[:4]),
    "big-endian": saved(number("x").astype(">f4")),
    "by columns": saved(np.asfortranarray(number("x"))),
    "not finite": saved(np.where(np.eye(8, 3), np.nan, 1).astype(np.float32)),
    "objects": saved(np.array([[None] * 3] * 8), allow_pickle=True),
    "a claim": SOUND.replace(b"(8, 3)", b"(9**9,)"),
    "a zip": b"PK\x03\x04" + bytes(ENTRY - 4),
}


@pytest.mark.parametrize("kind", [*BAD, "folder", "link", "dangling", "pipe"])
def test_whatever_is_not_sound_is_a_miss_and_is_replaced(
    tmp_path: Path, manifest: Manifest, kind: str
) -> None:
    warnings: list[str] = []
    cache = EmbeddingCache(tmp_path / "c", manifest, provider="cpu", warn=warnings.append)
    cache.put("x", number("x"))
    (entry,) = entries(tmp_path / "c")
    entry.unlink()
    outside = tmp_path / "outside.npy"
    outside.write_bytes(SOUND)
    if kind == "folder":
        entry.mkdir()
    elif kind == "link":
        entry.symlink_to(outside)
    elif kind == "dangling":
        entry.symlink_to(tmp_path / "made by us")
    elif kind == "pipe":
        os.mkfifo(entry)
    else:
        entry.write_bytes(BAD[kind])
    assert cache.get("x") is None
    assert len(warnings) == 1
    assert warnings[0].startswith(f"cached embedding {entry} is not sound (")
    assert warnings[0].endswith("): made again") and warnings[0].isprintable()
    cache.put("x", number("x"))
    found = cache.get("x")
    if kind == "folder":  # nothing of ours: left alone, and said
        assert found is None and "embedding not cached (" in warnings[1]
        return
    assert found is not None and found.tobytes() == number("x").tobytes()
    assert not entry.is_symlink() and entry.is_file()
    assert outside.read_bytes() == SOUND
    assert not (tmp_path / "made by us").exists()


def test_a_huge_file_is_not_read(tmp_path: Path, manifest: Manifest) -> None:
    cache = EmbeddingCache(tmp_path, manifest, provider="cpu")
    cache.put("x", number("x"))
    (entry,) = entries(tmp_path)
    os.truncate(entry, 2**36)
    tracemalloc.start()
    assert cache.get("x") is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_oldest_go_first_and_nothing_of_others(tmp_path: Path, manifest: Manifest) -> None:
    cache = EmbeddingCache(tmp_path, manifest, provider="cpu", limit_bytes=3 * ENTRY)
    others = {"notes.txt": b"n" * 5000, "mine.npy": b"m" * 5000, "A" * 64 + ".npy": b"a" * 5000}
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    left = tmp_path / f".{'0' * 40}.tmp-{'0' * 12}"
    left.write_bytes(bytes(ENTRY))
    os.utime(left, ns=(0, 0))
    for age, instruction in enumerate("abcde"):
        cache.put(instruction, number(instruction))
        for entry in entries(tmp_path):  # clocks of file systems are coarse
            if entry.name not in others and entry.stat().st_mtime_ns > 10**12:
                os.utime(entry, ns=(age + 1, age + 1))
    kept = [instruction for instruction in "abcde" if cache.get(instruction) is not None]
    assert kept == ["c", "d", "e"]
    assert not left.exists()
    assert all((tmp_path / name).read_bytes() == data for name, data in others.items())


def test_what_is_not_kept(tmp_path: Path, manifest: Manifest) -> None:
    cache = EmbeddingCache(tmp_path, manifest, provider="cpu")
    for array in (np.full((8, 3), np.nan), np.zeros((8, 4)), np.zeros((9, 3)), np.zeros(8)):
        cache.put("x", array.astype(np.float32))
    EmbeddingCache(tmp_path, manifest, provider="cpu", limit_bytes=50).put("x", number("x"))
    assert os.listdir(tmp_path) == [] and cache.get("x") is None
    cache.put("x", number("x")[:5])
    assert cache.get("x") is None and cache.get("x", rows=5) is not None


def test_a_bundle_that_does_not_say_how_wide(tmp_path: Path, manifest_data: dict[str, Any]) -> None:
    spec = manifest_data["graphs"]["text_encoder"]["outputs"]["prompt_embeds"]
    spec["shape"][2] = "width"
    with pytest.raises(BundleError, match=r"is a name, expected a number .* run without a cache"):
        EmbeddingCache(tmp_path, parse_manifest(manifest_data), provider="cpu")


def hammer(folder: str, seed: int, limit: int) -> None:
    """In a process of its own: threads read, write and tear the same entries."""
    manifest = parse_manifest(json.load(sys.stdin))
    said: list[str] = []
    hits: list[bool] = []

    def work(seed: int) -> None:
        cache = EmbeddingCache(
            folder, manifest, provider="cpu", limit_bytes=limit, warn=said.append
        )
        draw = random.Random(seed)
        for step in range(100):
            name = f"remove {draw.randrange(20)}"
            found = cache.get(name)
            if found is None:
                cache.put(name, number(name))
            else:
                hits.append(found.tobytes() == number(name).tobytes())
            if seed % 7 == 0 and step % 10 == 0:
                for entry in sorted(os.listdir(folder))[:2]:
                    with suppress(OSError):
                        os.truncate(Path(folder, entry), draw.randrange(200))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(seed * 10, seed * 10 + 3)))
    print(json.dumps([len(hits), all(hits), said]))


def test_processes_and_threads_share_a_folder(
    tmp_path: Path, manifest_data: dict[str, Any]
) -> None:
    limit, folder = 12 * ENTRY, tmp_path / "c"
    code = f"from {__name__} import hammer; hammer({str(folder)!r}, %d, {limit})"

    def start(seed: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code % seed], input=json.dumps(manifest_data), cwd=ROOT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor() as pool:
        for done in pool.map(start, range(3)):
            assert done.returncode == 0 and done.stderr == "", done.stderr
            hits, right, warnings = json.loads(done.stdout)
            assert right and hits > 30
            assert all("is not sound (" in e or "embedding not cached (" in e for e in warnings)
    assert all(file.suffix == ".npy" for file in folder.iterdir())
    assert sum(file.stat().st_size for file in folder.iterdir()) <= limit


def test_a_hit_never_opens_the_text_encoder(
    tiny_master: Path, tmp_path: Path, colours: np.ndarray, opened: list[str]
) -> None:
    def run(words: list[str]) -> list[bytes]:
        opened.clear()
        segmenter = Segmenter.from_bundle(
            tiny_master, provider="cpu", threads=1, cache_dir=tmp_path
        )
        assert "text_encoder.onnx" not in opened and len(opened) == 2
        return [result.score_map.tobytes() for result in segmenter.segment(colours, words)]

    words = ["red", "the green", "blue"]
    first = run(words)
    assert opened.count("text_encoder.onnx") == 1
    assert run(words) == first
    assert "text_encoder.onnx" not in opened
    assert run(list(reversed(words))) == list(reversed(first))
    assert "text_encoder.onnx" not in opened
    run([*words, "the blue"])
    assert opened.count("text_encoder.onnx") == 1
    without = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)
    assert [r.score_map.tobytes() for r in without.segment(colours, words)] == first
    assert "text_encoder.onnx" in opened


def test_fixed_sizes_and_a_cache_load_nothing_before_it_is_needed(
    static_bundle: Path, tmp_path: Path, colours: np.ndarray, opened: list[str]
) -> None:
    for _ in range(2):
        opened.clear()
        segmenter = Segmenter.from_bundle(static_bundle, provider="cpu", cache_dir=tmp_path / "c")
        assert opened == [] and segmenter.provider == "cpu"
        segmenter.segment(colours, "red")
    assert opened == ["vae_encoder.160x96.onnx", "transformer.vectors.160x96.onnx"]


def test_a_folder_that_goes_away(tiny_master: Path, tmp_path: Path, colours: np.ndarray) -> None:
    warnings: list[str] = []
    segmenter = Segmenter.from_bundle(
        tiny_master, provider="cpu", cache_dir=tmp_path / "c", warn=warnings.append
    )
    (tmp_path / "c").rmdir()
    assert segmenter.segment(colours, "red").mask.any()
    assert len(warnings) == 1 and warnings[0].startswith("embedding not cached (cannot write ")


def test_a_folder_that_is_none(tiny_master: Path, tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match=r"cannot make folder .*/f for embeddings: File exists"):
        Segmenter.from_bundle(tiny_master, provider="cpu", cache_dir=tmp_path / "f")
    assert opened == []  # before minutes of loading
