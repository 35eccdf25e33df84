"""What a person sees on stderr."""

import warnings

import pytest

from rism.cli.console import Console
from rism.runtime.errors import RismWarning


def test_warnings_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as others, Console().reporting():
        warnings.warn("slower:\nno graph", RismWarning, stacklevel=1)
        warnings.warn("of another library", UserWarning, stacklevel=1)
    assert [str(each.message) for each in others] == ["of another library"]
    assert capsys.readouterr().err == "warning: slower: no graph\n"
    with Console(quiet=True).reporting():
        warnings.warn("slower: still no graph", RismWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
