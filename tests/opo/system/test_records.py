"""Sealed JSON: what was written comes back, and one changed number is named."""

import json

import pytest

from opo.errors import UserError
from opo.system.records import read_sealed, sealed

CONTENT = {"b": [1, 2.5, None, True], "a": {10: "ä", 9: 0.1}, "none": {}}


@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_what_was_sealed_comes_back_however_it_was_laid_out(tmp_path, options):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(sealed(CONTENT), **options))
    assert read_sealed(file) == json.loads(json.dumps(CONTENT))


@pytest.mark.parametrize(
    ("old", "new"),
    [("2.5", "2.6"), ("true", "false"), ('"b"', '"c"'), ("[1, ", "[1.0, "), ('"sha256"', '"sha"'), ("null, ", "")],
)
def test_any_change_is_named(tmp_path, old, new):
    file = tmp_path / "x.json"
    text = json.dumps(sealed(CONTENT))
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"x.json: damaged, it holds something else than was written"):
        read_sealed(file)
