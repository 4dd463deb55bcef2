"""References: each form, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tea_models.errors import UsageError
from tea_models.refs import (
    FileRef,
    FsspecRef,
    HubRef,
    NameRef,
    OllamaRef,
    UrlRef,
    WheelRef,
    parse_reference,
)

SHA = "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("phi4-mini", NameRef("phi4-mini")),
        ("phi4-mini:Q4_K_M", NameRef("phi4-mini", "Q4_K_M")),
        ("hf:o/r", HubRef("o/r")),
        ("hf:o/r@main", HubRef("o/r", revision="main")),
        ("hf:o/r:Q4_K_M@abc", HubRef("o/r", quantization="Q4_K_M", revision="abc")),
        ("hf:o/r/sub/f.gguf@abc", HubRef("o/r", path="sub/f.gguf", revision="abc")),
        ("https://h/f.gguf", UrlRef("https://h/f.gguf")),
        (f"https://h/f.gguf?x=1#sha256={SHA}", UrlRef("https://h/f.gguf?x=1", SHA)),
        ("pypi:p==1.0/d/f.gguf", WheelRef("p", "1.0", "d/f.gguf")),
        ("ollama:llama3.2", OllamaRef("llama3.2")),
        ("ollama:library/llama3.2:1b", OllamaRef("library/llama3.2", "1b")),
        ("file:/a/b.gguf", FileRef(Path("/a/b.gguf"))),
        ("file:///a/b%20c.gguf", FileRef(Path("/a/b c.gguf"))),
        ("./b.gguf", FileRef(Path("b.gguf"))),
        ("b.gguf", FileRef(Path("b.gguf"))),
        ("/x/y", FileRef(Path("/x/y"))),
        ("s3://bucket/key.gguf", FsspecRef("s3://bucket/key.gguf")),
    ],
)
def test_each_form_is_parsed_and_printed_back(text: str, expected: object) -> None:
    parsed = parse_reference(text)
    assert parsed == expected
    assert parse_reference(str(parsed)) == parsed


def test_a_home_relative_path_is_expanded() -> None:
    assert parse_reference("~/m.gguf") == FileRef(Path.home() / "m.gguf")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "a\nb",
        "a\x1b[31m",
        "phi4-mini:",
        "hf:only",
        "hf:o/r/../x.gguf",
        "hf:o/r/",
        "hf:o/r@",
        "hf:o/r:@x",
        "hf:../x/y",
        "https://",
        "https:///x.gguf",
        "https://h/f.gguf#sha256=12",
        "https://h/f.gguf#md5=12",
        "https://[h/f.gguf",
        "pypi:p/f.gguf",
        "pypi:p==1/../f",
        "pypi:-r==1/f",
        "ollama:",
        "ollama:../x",
        "file:",
        "file://host/x.gguf",
    ],
)
def test_a_wrong_reference_is_a_usage_error_that_repeats_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert caught.value.exit_code == 2
    assert repr(text) in str(caught.value)
