"""Instructions in a model's own words: the same as its makers' code, once, and kept."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from rism.export import CheckpointError, ExportError, UnsupportedModelError
from rism.export.families.step1x.versions import TEXTS
from rism.export.refiner import qwen_model
from rism.export.refiner.answer_file import unquote
from rism.export.refiner.qwen_files import find_language_model
from rism.export.refiner.qwen_model import LanguageModel, shrink
from rism.export.refiner.refine import RefineReport, refine_images
from rism.export.refiner.settings import ImageExpressions, RefineProgress, RefineSettings
from rism.runtime import InputError, InstructionFile, OutputError, load_image
from tests.cli.conftest import invoke
from tests.export.small_vlm import make_vlm, real_processor, say
from tests.paths import EXAMPLES, STREET

Size = tuple[int, int]
OTHER = EXAMPLES / "colour-2.png"
PROMPT = (TEXTS / "refiner.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The published configuration samples and frowns on repetition; only the second is kept.
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 50, "repetition_penalty": 1.05}
    folder = tmp_path_factory.mktemp("vlm") / "Qwen2.5-VL-7B-Instruct"
    return make_vlm(folder, ending=1.3, generation=generation)


@pytest.fixture
def refine(vlm: Path, tmp_path: Path) -> Callable[..., RefineReport]:
    def call(
        images: Any = (STREET,), expressions: Any = ("the green van",), **options: Any
    ) -> RefineReport:
        model, progress = str(options.pop("model", vlm)), options.pop("progress", None)
        asked = [ImageExpressions(str(i), partial(load_image, i), expressions) for i in images]
        settings, file = RefineSettings(**options), tmp_path / "i.json"
        return refine_images(model, asked, file, settings, strict=True, progress=progress)

    return call


def makers_answer(
    model: Qwen2_5_VLForConditionalGeneration, picture: Path, instruction: str, *, tokens: int
) -> str:
    """The published code's steps, sampling left out, over the family's own processor."""
    system, user = PROMPT.removesuffix("\n").split("\n---\n")
    language = "中文" if sum("\u4e00" <= c <= "\u9fff" for c in instruction) > 1 else "英文"
    user = user.replace("{instruction}", instruction).replace("{language}", language)
    image = Image.open(picture).convert("RGB")
    image.thumbnail((1024, 1024))
    # Neither example is near a limit: qwen_vl_utils rounds the sides.
    image = image.resize((round(image.width / 28) * 28, round(image.height / 28) * 28))
    processor = real_processor(Path(model.name_or_path), min_pixels=262144, max_pixels=802816)
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user}]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], padding=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    said = ids[:, inputs["input_ids"].shape[1] :]
    (answer,) = processor.batch_decode(said, skip_special_tokens=True)
    return str(answer).strip()


def test_the_words_are_the_published_ones() -> None:
    system, user = PROMPT.removesuffix("\n").split("\n---\n")
    assert hashlib.sha256(f"{system}\0{user}".encode()).hexdigest() == (
        "9ba981edb9e02940cd9edcafe7c9231afbef8655e39f1cc79f6b5e057a397152"
    )
    assert (user.count("{instruction}"), user.count("{language}")) == (1, 3)


def test_it_says_what_the_makers_code_says(refine: Any, vlm: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"  # the least that the processor does not enlarge
    Image.open(OTHER).convert("RGB").resize((532, 504)).save(small)
    report = refine((small,), ("the green van", "小狗"), max_new_tokens=4)
    assert (report.answered, report.kept, report.failures) == (2, 0, ())
    assert (report.device, report.precision) == ("cpu", "fp32")
    found = InstructionFile.open(report.output)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(vlm, dtype=torch.float32)
    answers = set()
    for instruction in ("remove the green van", "remove 小狗"):
        wanted = makers_answer(model, small, instruction, tokens=4)
        assert found(instruction, load_image(small)) == " ".join(wanted.split())
        answers.add(wanted)
    assert len(answers) == 2  # it reads; that it looks is in the comparison of its inputs


def test_inputs_are_those_of_the_processor(vlm: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1300, 2100, 3), np.uint8)
    model = LanguageModel(find_language_model(str(vlm)))
    model.load("fp32", "cpu")
    inputs = model._inputs("remove {language} from it", pixels)
    processor = real_processor(vlm, min_pixels=262144, max_pixels=802816)
    text = model._render("remove {language} from it")
    assert "instruction:remove {language} from it\nYour" in text and "in 英文. Your" in text
    wanted = processor(text=[text], images=[shrink(pixels)], return_tensors="pt")
    assert set(inputs) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(inputs[name], value), name
    assert int(inputs["image_grid_thw"].prod()) * 14**2 <= 802816


@pytest.mark.parametrize(
    ("size_wh", "expected"),
    [
        ((640, 480), (644, 476)),
        ((2048, 1024), (1036, 504)),
        ((2000, 1500), (1036, 756)),  # thumbnail: 1024 x 768
        ((28, 28), (56, 56)),
        ((10, 40), (28, 112)),
        ((5, 900), (28, 896)),
        ((1, 200), (28, 196)),
    ],
)
def test_a_picture_comes_in_whole_tokens(size_wh: Size, expected: Size) -> None:
    assert shrink(np.zeros((*size_wh[::-1], 3), np.uint8)).size == expected


def test_a_run_goes_on_where_it_was_interrupted(
    refine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = say(monkeypatch, "Remove a.", "Remove b.", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        refine((STREET, OTHER), ("a", "b"))
    assert len(InstructionFile.open(tmp_path / "i.json")) == 2
    report = refine((STREET, OTHER), ("a", "b", " b "), template="remove {expression}")
    assert (report.answered, report.kept) == (2, 2)
    assert asked == ["remove a", "remove b", "remove a", "remove a", "remove b"]
    resumed = report.output.read_bytes()
    again = refine((STREET, OTHER), ("a", "b"))
    assert (again.answered, again.kept, again.device) == (0, 4, "")
    refine((STREET,), ("a",), template="cut {expression}")
    assert asked[-1] == "cut a"
    found = InstructionFile.open(tmp_path / "i.json")
    assert len(found) == 5
    assert found("remove a", load_image(STREET)) == "Remove a."
    report.output.unlink()
    say(monkeypatch, "Remove a.", "Remove b.")
    assert refine((STREET, OTHER), ("a", "b")).output.read_bytes() == resumed


def test_answers_are_on_disk_while_others_come(
    refine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held: list[int] = []
    say(monkeypatch)
    monkeypatch.setattr("rism.export.refiner.answer_file.SAVE_EVERY_S", 0.0)

    def step(*_: Any) -> None:
        path = tmp_path / "i.json"
        held.append(len(InstructionFile.open(path)) if path.exists() else 0)

    refine((STREET,), ("a", "b", "c"), progress=RefineProgress(step=step))
    assert held == [0, 1, 2]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", "is empty, expected words"),
        ("a\0b", "contains the control character"),
        ("Remove <|im_start|> it", "contains '<|im_start|>', a control token of this model"),
        ("x" * 5000, "has 5000 characters, expected at most 4096"),
    ],
)
def test_an_unusable_answer_is_left_out(
    refine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, expected: str
) -> None:
    say(monkeypatch, answer, "Remove b.")
    failures: list[str] = []
    report = refine((STREET,), ("a", "b"), progress=RefineProgress(failed=failures.append))
    assert report.answered == 1
    (failure,) = report.failures
    assert failures == [failure]
    assert failure.startswith(f"{STREET}: the answer to 'remove a' {expected}")
    assert len(InstructionFile.open(tmp_path / "i.json")) == 1


def test_a_cut_answer_is_kept_and_told(refine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, ("Remove\nthe  red\tcar", False))
    stages: list[str] = []
    report = refine(progress=RefineProgress(stage=stages.append))
    assert report.failures == ()
    assert any("was cut at 128 tokens" in stage for stage in stages)
    found = InstructionFile.open(report.output)
    assert found("remove the green van", load_image(STREET)) == "Remove the red car"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("'Remove the dog's ball.'", "Remove the dog's ball."),
        ('"Remove it."', "Remove it."),
        ("“Remove it.”", "Remove it."),
        ('"TOFEL" becomes "IELTS"', '"TOFEL" becomes "IELTS"'),
        ("“A” 换成 “B”", "“A” 换成 “B”"),
        ("'a' and 'b'", "'a' and 'b'"),
        ('Replace "a" with "b"', 'Replace "a" with "b"'),
        ('"', '"'),
        ("", ""),
    ],
)
def test_quotes_that_wrap_all_of_it_go(said: str, kept: str) -> None:
    assert unquote(said) == kept


def test_other_settings_do_not_share_a_file(
    refine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vlm: Path
) -> None:
    say(monkeypatch)
    refine()
    before = (tmp_path / "i.json").read_bytes()
    with pytest.raises(InputError, match=r"answers by max_new_tokens 128, this run is by 64: cho"):
        refine(max_new_tokens=64)
    with pytest.raises(InputError, match="answers by precision fp32, this run is by bf16"):
        refine(precision="bf16")
    other = make_vlm(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"answers by revision sha256:.* this run is by sha256:"):
        refine(model=other)
    assert (tmp_path / "i.json").read_bytes() == before
    (tmp_path / "i.json").write_text("[]")
    with pytest.raises(InputError, match="is not a file of instructions"):
        refine()


def test_layouts_and_what_is_none(vlm: Path, tmp_path: Path) -> None:
    makers = vlm.parent / "step1x-edit"
    makers.mkdir()
    (makers / "step1x.safetensors").touch()
    for model in (vlm, vlm.parent, makers, makers / "step1x.safetensors"):
        assert find_language_model(str(model)).weights == vlm
    diffusers = tmp_path / "step1x"
    make_vlm(diffusers / "text_encoder", processor=diffusers / "processor")
    found = find_language_model(str(diffusers))
    assert (found.weights.name, found.tokenizer.name) == ("text_encoder", "processor")
    prompt = LanguageModel(found).prompt_digest()
    (diffusers / "processor").rename(diffusers / "tokenizer")
    (diffusers / "tokenizer/preprocessor_config.json").unlink()
    found = find_language_model(str(diffusers))
    assert found.tokenizer.name == "tokenizer"
    assert LanguageModel(found).prompt_digest() == prompt
    (diffusers / "tokenizer").rename(diffusers / "elsewhere")
    with pytest.raises(CheckpointError, match=r"has no tokenizer, expected processor/ or"):
        find_language_model(str(diffusers))
    with pytest.raises(CheckpointError, match="holds no language model, expected text_encoder/"):
        find_language_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="no model 'nothing': expected one of step1x, "):
        find_language_model("nothing")
    (diffusers / "text_encoder/config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(UnsupportedModelError, match="is qwen3, expected qwen2_5_vl"):
        find_language_model(str(diffusers))


def test_a_hub_gives_small_files_first(
    vlm: Path, monkeypatch: pytest.MonkeyPatch, refine: Any, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def snapshot(hub_id: str, patterns: list[str], **options: Any) -> Path:
        asked.append((hub_id, options))
        return vlm

    monkeypatch.setattr("rism.export.refiner.qwen_files.fetch_snapshot", snapshot)
    say(monkeypatch)
    for _ in range(2):
        refine(model="step1x-v1.2", revision="main")
    commit = vlm.name
    hub_id = "stepfun-ai/Step1X-Edit-v1p2"
    assert asked == [
        (hub_id, {"revision": revision, "offline": False, "weights": weights})
        for revision, weights in (("main", False), (commit, True), ("main", False))
    ]
    origin = InstructionFile.open(tmp_path / "i.json").origin
    assert (origin.model, origin.revision) == (hub_id, commit)


def test_weights_that_are_not_whole(vlm: Path, tmp_path: Path, refine: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "vlm"
    shutil.copytree(vlm, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 'lm_head\.weight' and perhaps more"):
        refine(model=folder)
    (folder / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match=r"the language model in .* cannot be used"):
        refine(model=folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing, expected the wei"):
        refine(model=folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="vlm holds no Qwen tokenizer"):
        refine(model=folder)


def test_what_does_not_fit_is_said_before_loading(
    refine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(qwen_model, "free_memory", lambda: 10**9)
    with pytest.raises(ExportError, match=r"needs 1\.6 GB of memory on cpu in fp32, 1\.0 GB are"):
        refine()
    assert not (tmp_path / "i.json").exists()
    if not torch.cuda.is_available():
        with pytest.raises(ExportError, match="torch sees no CUDA device"):
            refine(provider="cuda")


def test_what_is_wrong_is_said_before_anything_is_read(refine: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for output, message in (("folder", "is a folder"), ("no/i.json", "is not there: make it")):
        with pytest.raises(OutputError, match=message):
            refine_images("nothing", [], tmp_path / output, RefineSettings())
    for options, message in (
        ({"expressions": (" ",)}, "the expression is empty"),
        ({"template": "remove"}, "template is 'remove', expected text with"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 to 2048"),
        ({"precision": "fp16"}, "precision is 'fp16', expected one of bf16, fp32"),
        ({"provider": "tpu"}, "provider is 'tpu', expected one of auto, cpu, cuda"),
        ({"images": ("none.png",)}, "image 'none.png' is not there"),
        ({"images": ("a.png", "b.png")}, "none of 2 images can be read"),
    ):
        with pytest.raises(InputError, match=message):
            refine(model="nothing", **options)
    with pytest.raises(InputError, match=r"the instruction contains '<.image_pad.>', a control"):
        refine(expressions=("a <|image_pad|> b",))


def test_the_command(vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    shutil.copy(STREET, "in/street.png")
    Path("in/broken.png").write_bytes(b"none")
    flags = ["-o", "i.json", "--model", str(vlm), "--max-new-tokens", "4", "--provider", "cpu"]
    shown = invoke("refine", "in", "the red car", "the dog", *flags, code=1)
    errors = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: in/broken.png: 'in/broken.png' is not an image")
    assert errors[1:] == ["error: 1 images or instructions were left out, the others are in i.json"]
    assert "2 answered, 0 were there already -> i.json" in shown.stderr
    written = json.loads(Path("i.json").read_text())["instructions"]
    assert [one["image"] for one in written] == ["street.png"] * 2
    assert invoke("refine", "in/street.png", "the dog", *flags, "-q").output == ""
    for arguments in (["-", "a", *flags], ["in", "a", *flags, "-o", "-"]):
        invoke("refine", *arguments, code=2)
    assert invoke("refine", "none.png", "a", *flags, code=2).stderr.count("\n") == 1
