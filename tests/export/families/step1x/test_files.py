"""Step1X-Edit's checkpoints: versions and layouts recognised, every tensor accounted for."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.synthetic import qwen_files
from benchmarks.synthetic.step1x_tensors import STEP1X
from rism.export import CheckpointError, ExportOptions, plan_export
from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part
from rism.export.exporter import open_model
from rism.export.families import FAMILIES
from rism.export.families.find import find_checkpoint
from rism.export.families.step1x.model import Step1XModel
from rism.export.precision import PRECISIONS
from rism.runtime.errors import InputError
from rism.runtime.image.geometry import plan
from tests.export.families.step1x.small_model import VERSIONS, make_step1x, open_step1x

PIPELINE = "Step1XEdit"
FILE = "step1x-edit-i1258.safetensors"
QWEN = "Qwen2.5-VL-7B-Instruct"
Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture
def original(shared: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared["1.0"], tmp_path / "model"))


def rewrite(file: Path, change: Change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def added(name: str, size: int) -> Change:
    return lambda tensors: tensors.update({name: torch.zeros(size)})


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_is_read_off_the_files(shared: dict[str, Path], version: str) -> None:
    model = open_step1x(shared[version])
    assert model.version.name == version
    rules = model.spec.prompt
    assert rules.padding == {"1.2": "none"}.get(version, "zeros")
    assert rules.positions == {"1.2": "grid"}.get(version, "none")
    assert rules.vision is not None
    # The picture comes after the instruction in 1.2 alone.
    assert ("<|image_pad|>" in rules.suffix) == (version == "1.2")


def test_a_renamed_file_is_still_its_version(shared: dict[str, Path], tmp_path: Path) -> None:
    for version in ("1.0", "1.1"):
        folder = Path(shutil.copytree(shared[version], tmp_path / version))
        file = next(folder.glob("step1x*.safetensors"))
        file.rename(folder / "some-step1x.safetensors")
        assert open_step1x(folder).version.name == version
        assert open_step1x(folder / "some-step1x.safetensors").version.name == version


def test_a_whole_download_means_the_version_of_the_paper(
    shared: dict[str, Path], original: Path
) -> None:
    other = next(shared["1.1"].glob("step1x*.safetensors"))
    shutil.copy(other, original / other.name)
    assert find_checkpoint(str(original)).transformer_file == original / FILE
    assert open_step1x(original / other.name).version.name == "1.1"


def test_published_defaults(shared: dict[str, Path], tmp_path: Path) -> None:
    for version in VERSIONS:
        folder = Path(shutil.copytree(shared[version], tmp_path / version))
        settings = json.loads((folder / "rism.json").read_text())
        heads = {k: v for k, v in settings.items() if k == "connector_heads"}
        (folder / "rism.json").write_text(json.dumps(heads))
        spec = open_step1x(folder).spec
        rules, vision = spec.prompt, spec.prompt.vision
        assert vision is not None and rules.quotes is not None
        cells = (vision.min_pixels / 28**2, vision.max_pixels / 28**2)
        quotes = (rules.quotes.style, rules.quotes.start)
        assert (rules.drop, rules.max_length, spec.geometry.size_level, cells, quotes) == {
            "1.0": (217, 640, 512, (256, 324), ("toggle", 156)),
            "1.1": (217, 640, 1024, (256, 324), ("toggle", 156)),
            "1.2": (90, 2048, 1024, (256, 400), ("paired", 449)),
        }[version]
        assert spec.geometry.rounding == "ceil"
        assert spec.feature_block == round(40 / 57 * 5)
        unseen = (rules.unseen_id, rules.unseen_attended, rules.unseen_position)
        assert unseen == (0, version == "1.2", 1)
        assert vision.arithmetic == ("pillow" if version == "1.0" else "torchvision")
        assert ("Picture 1: " in rules.prefix + rules.suffix) == (version != "1.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_string_before_the_picture_is_a_choice(
    shared: dict[str, Path], tmp_path: Path, version: str
) -> None:
    checkpoint = find_checkpoint(str(shared[version]))
    own = open_step1x(shared[version])
    for choice in (False, True):
        other = open_model(replace(checkpoint, settings={"vision_id": choice}))
        assert isinstance(other, Step1XModel)
        for model in (other, other.samples_of_blocks()[0]):
            rules = model.spec.prompt
            assert ("Picture 1: " in rules.prefix + rules.suffix) == choice
        assert (other.spec.prompt == own.spec.prompt) == (choice == (version != "1.0"))
        assert other.version.vision_id == choice  # what the reference model asks
    with pytest.raises(InputError, match="mini is of a family of models that has no option 'vi"):
        plan_export("mini", tmp_path / "b", ExportOptions(vision_id=True))


def values(part: Part | None) -> dict[str, torch.Tensor]:
    assert part is not None
    return dict(part.fill().state_dict())


def test_both_layouts_are_one_model(shared: dict[str, Path], tmp_path: Path) -> None:
    ours = open_step1x(shared["1.1"])
    theirs = open_step1x(make_step1x(tmp_path / "diffusers", "1.1", layout="diffusers"))
    assert ours.spec.family is theirs.spec.family
    assert ours.sizes == theirs.sizes
    fp32 = PRECISIONS["fp32"]
    for part in ("transformer", "text_encoder", "vision_encoder"):
        found, wanted = (values(getattr(model, part)(fp32)) for model in (ours, theirs))
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_a_processor_saved_with_1_1_keeps_its_limits(tmp_path: Path) -> None:
    folder = make_step1x(tmp_path / "model", "1.1", layout="diffusers")
    (folder / "rism.json").unlink()
    path = folder / "processor" / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"min_pixels": 5 * 28**2, "max_pixels": 77 * 28**2}))
    vision = open_step1x(folder).spec.prompt.vision
    assert vision is not None
    assert (vision.min_pixels, vision.max_pixels) == (5 * 28**2, 77 * 28**2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("double_blocks.1.img_mlp.2.bias"), r"transformer_blocks\.1\.ff\.net\.2"),
        (lambda t: t.pop("connector.S.c_embedder.linear_1.weight"), r"connector\.S\.c_embedder"),
        (lambda t: t.pop("final_layer.linear.weight"), r"lacks 1 of \d+ tensors .*proj_out"),
        (added("lora_up", 2), "'lora_up' that Step1X-Edit's layout does"),
        (added("connector.extra.weight", 2), r"no place for, such as connector\.extra\.weight"),
        (added("txt_in.bias", 7), r"context_embedder\.bias has shape \[7\]"),
        (added("img_in.scale_weight", 1), r"\(FP8 with scales: img_in\.scale.*BF16"),
    ],
)
def test_each_tensor_is_accounted_for(original: Path, change: Change, message: str) -> None:
    rewrite(original / FILE, change)
    with pytest.raises(CheckpointError, match=message):
        open_step1x(original)


def test_weights_cast_to_eight_bits(original: Path, shared: dict[str, Path]) -> None:
    narrow = torch.float8_e4m3fn

    def cast(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                tensors[name] = tensor.to(narrow)

    rewrite(original / FILE, cast)
    rounded = values(open_step1x(original).transformer(PRECISIONS["fp32"]))
    wide = values(open_step1x(shared["1.0"]).transformer(PRECISIONS["fp32"]))
    for name, tensor in rounded.items():
        wanted = wide[name]
        if tensor.ndim == 2 and name not in ("time", "connector_time"):
            assert tensor.dtype == torch.bfloat16, name
            wanted = wanted.to(narrow).to(tensor.dtype)
            torch.testing.assert_close(tensor, wanted, atol=0, rtol=0, msg=name)


def test_what_is_missing_is_named(original: Path, tmp_path: Path) -> None:
    (original / "vae.safetensors").rename(tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks vae\.safetensors"):
        open_step1x(original)
    (tmp_path / "vae.safetensors").rename(original / "ae.safetensors")
    open_step1x(original)
    (original / QWEN).rename(tmp_path / QWEN)  # beside the folder is right, too
    open_step1x(original)
    (tmp_path / QWEN).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no folder Qwen2\.5-VL-7B-Instruct"):
        open_step1x(original)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "config.json"])
def test_a_text_encoder_without_its_small_files(original: Path, name: str) -> None:
    (original / QWEN / name).unlink()
    with pytest.raises(CheckpointError):
        open_step1x(original)


def test_a_template_that_shows_no_picture(original: Path) -> None:
    broken = {"chat_template": "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"}
    (original / QWEN / "chat_template.json").write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match=r"does not put one <\|image_pad\|>"):
        open_step1x(original)


def test_settings_that_cannot_be(original: Path) -> None:
    (original / "rism.json").write_text(json.dumps({"drop_tokens": -1}))
    with pytest.raises(CheckpointError, match=r"drop_tokens is -1, expected a whole number from 0"):
        open_step1x(original)
    (original / "rism.json").write_text(json.dumps({"connector_heads": 2, "feature_block": 5}))
    with pytest.raises(CheckpointError, match="feature_block is 5, the transformer has 5 blocks"):
        open_step1x(original)


def test_the_plan_of_the_published_model_needs_its_small_files_only(tmp_path: Path) -> None:
    language = tmp_path / "qwen"
    language.mkdir()
    tokenizer = qwen_files.make_tokenizer(STEP1X)
    qwen_files.write_tokenizer(language, tokenizer, published=True)
    qwen_files.write_preprocessor(language, min_pixels=3136, max_pixels=12845056)
    config = qwen_files.language_config(STEP1X, tokenizer, nested=False)
    (language / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(
        tmp_path, "hub:stepfun-ai/Step1X-Edit", "abc", None, False, language, PIPELINE
    )
    family = next(family for family in FAMILIES if PIPELINE in family.pipelines)
    model, names = family.open(checkpoint), ("transformer", "modulation", "text_encoder")
    parts = [
        getattr(model, name)(PRECISIONS["bf16"])
        for name in (*names, "vision_encoder", "vae_encoder")
    ]
    billions = [round(part.parameters / 1e9, 2) for part in parts]
    # The first two: 12.43 without what the timestep decides, the last block's rest and the
    # final layer.
    assert billions == [9.05, 3.23, 7.08, 0.68, 0.03]
    assert (model.spec.licence, model.spec.feature_block) == ("Apache-2.0", 40)
    assert 1024 <= model.spec.noise_rows < 1035


def test_pictures_of_every_shape_fit_the_noise(shared: dict[str, Path]) -> None:
    for level in (512, 1024):
        spec = open_step1x(shared["1.0"]).spec.at_level(level)
        sides = np.random.default_rng(level).integers(16, 4000, (3_000, 2))
        for width, height in sides:
            if max(width, height) <= 8 * min(width, height):
                plan((int(width), int(height)), spec.geometry, max_tokens=spec.noise_rows)


def test_two_repositories_of_the_hub_s_cache_are_one_model(
    shared: dict[str, Path], hub_cache: Callable[[str], Path]
) -> None:
    for hub_id, source in (
        ("stepfun-ai/Step1X-Edit", shared["1.0"]),
        ("Qwen/Qwen2.5-VL-7B-Instruct", shared["1.0"] / QWEN),
    ):
        shutil.copytree(source, hub_cache(hub_id), ignore=lambda *_: [QWEN])
    planned = find_checkpoint("step1x", offline=True, weights=False)
    assert (planned.pipeline, planned.transformer_file) == (PIPELINE, None)
    found = find_checkpoint("step1x", offline=True)
    assert found.source == "hub:stepfun-ai/Step1X-Edit"
    assert found.name == "Step1X-Edit"
    assert found.folders == (found.folder, found.language)
    model = open_model(found)
    assert isinstance(model, Step1XModel)
    assert (model.version.name, model.spec.licence) == ("1.0", "Apache-2.0")
