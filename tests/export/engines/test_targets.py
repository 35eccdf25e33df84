"""Which library builds for which GPU, in which precision and form."""

import onnx_ir as ir
import pytest

from rism.export.engines.targets import (
    TARGETS,
    check_gpus,
    check_weights,
    find_target,
    form_for,
    installed_version,
    parse_gpus,
)
from rism.runtime.errors import InputError, ProviderError

RTX, TENSORRT = TARGETS["tensorrt-rtx"], TARGETS["tensorrt"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("sm86,sm120", ("8.6", "12.0")), (" 89 , SM_86,sm86", ("8.9", "8.6")), ("8.9", ("8.9",))],
)
def test_gpus_are_read_as_people_write_them(text: str, found: tuple[str, ...]) -> None:
    assert parse_gpus(text) == found


@pytest.mark.parametrize("text", ["", "sm", "ada", "sm86,", "sm1234", "8.6.1"])
def test_what_is_no_gpu_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--gpu has .*expected compute capabilities such as sm86"):
        parse_gpus(text)


def test_left_out_it_is_every_gpu_that_can_do_the_precision() -> None:
    assert check_gpus(RTX, (), "bf16", ()) == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert check_gpus(RTX, (), "fp8", ()) == ("8.9", "12.0", "12.1")


@pytest.mark.parametrize(
    ("gpu", "precision", "message"),
    [
        ("9.0", "fp16", "does not serve sm90 \\(Hopper\\).*--target tensorrt on a machine with"),
        ("10.0", "fp16", "does not serve sm100 \\(data-centre Blackwell\\)"),
        ("8.7", "fp16", "does not serve sm87 \\(Jetson Orin\\).*on the Jetson"),
        ("7.5", "fp16", "does not serve sm75 \\(Turing"),
        ("5.2", "fp16", "does not serve sm52, expected some of sm80"),
        ("8.6", "fp8", "sm86 has no fp8, which needs sm89 or newer \\(sm89, sm120, sm121\\)"),
        ("8.9", "nvfp4", "sm89 has no nvfp4, which needs sm100 or newer \\(sm120, sm121\\)"),
        ("8.9", "nvfp4a16", "sm89 has no nvfp4a16, which needs sm100 or newer"),
    ],
)
def test_a_gpu_that_cannot_be_served_is_refused_by_name(
    gpu: str, precision: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_gpus(RTX, (gpu,), precision, ())


def test_tensorrt_builds_for_the_gpu_of_its_machine_alone() -> None:
    assert check_gpus(TENSORRT, (), "fp8", ("9.0",)) == ("9.0",)
    assert check_gpus(TENSORRT, ("9.0",), "bf16", ("9.0",)) == ("9.0",)
    with pytest.raises(InputError, match="the GPU of this machine \\(sm90\\), not for sm86"):
        check_gpus(TENSORRT, ("8.6",), "bf16", ("9.0",))
    with pytest.raises(InputError, match="sm87 has no fp8, which needs sm89"):
        check_gpus(TENSORRT, (), "fp8", ("8.7",))
    with pytest.raises(ProviderError, match=r"there is none here.*--target tensorrt-rtx"):
        check_gpus(TENSORRT, (), "fp16", ())


def test_a_stripped_engine_is_for_one_gpu() -> None:
    check_weights(RTX, ("8.9",), "stripped")
    check_weights(RTX, ("8.6", "8.9"), "bound")
    with pytest.raises(InputError, match=r"strips an engine for one GPU at a time.*sm86, sm89"):
        check_weights(RTX, ("8.6", "8.9"), "stripped")


def test_an_unknown_target_and_a_missing_library_are_named() -> None:
    with pytest.raises(InputError, match="target is 'openvino', expected tensorrt-rtx or tensorrt"):
        find_target("openvino")
    with pytest.raises(ProviderError, match=r"pip install .*\[tensorrt\]'; .*JetPack"):
        installed_version(TENSORRT)
    assert installed_version(RTX)


def test_attention_is_left_to_libraries_that_read_it() -> None:
    assert form_for("tensorrt", "10.3.0").fused == ()
    assert form_for("tensorrt", "10.3.0").opset == 20
    newer = form_for("tensorrt", "10.14.1.48")
    assert ir.DataType.BFLOAT16 in newer.fused
    assert form_for("tensorrt", "11.4.0.106") == newer
    assert ir.DataType.FLOAT not in form_for("tensorrt-rtx", "1.7.1.116").fused
