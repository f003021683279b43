"""Addresses of servers, their keys, and the precedence of model and endpoint."""

from pathlib import Path

import pytest

from llama_chat.endpoint.address import parse_address, read_key
from llama_chat.errors import UsageError
from llama_chat.settings.settings import Settings
from llama_chat.settings.sources import load_settings
from tests.endpoints import KEY, assert_one_line


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://h.example/api/v3/", "https://h.example/api/v3"),
        ("HTTP://[::1]:80", "http://[::1]:80/v1"),
        ("unix:/run/x.sock", "http://localhost/v1"),
    ],
)
def test_an_address_is_a_url_or_a_socket(text: str, url: str) -> None:
    address = parse_address(text)
    assert address.url == url
    assert address.is_here == ("example" not in text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "localhost:8000", "ftp://h", "http://", "http://h:99999", "http://h:x"),
        *("http://a b", "http://h/?k=v", "http://h/#f", "http://h/\x1b[2J", "unix:", "http://h?"),
        *("http://user:hunter2@h", "https://hunter2@h/v1", "http://[x", "file:///x"),
        *("http://é.example", "//hunter2@h", "http:///x"),
    ],
)
def test_other_addresses_are_refused_without_what_may_be_a_password(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert_one_line(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_key_is_from_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    settings = Settings(api_key_file=str(file))
    assert read_key(settings, {}) == KEY
    assert read_key(settings, {"LLAMA_CHAT_API_KEY": "other"}) == "other"
    assert read_key(settings, {"LLAMA_CHAT_API_KEY": ""}) is None
    assert read_key(Settings(), {}) is None
    for bad in ("sécret", "two words", "a\nb"):
        file.write_text(bad)
        with pytest.raises(UsageError) as caught:
            read_key(settings, {})
        assert_one_line(caught.value, "cannot be sent")
        assert bad not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        read_key(Settings(api_key_file=str(tmp_path / "none")), {})
    assert_one_line(caught.value, "no such file")


@pytest.mark.parametrize(
    ("flags", "environment", "url"),
    [
        ({}, {}, "http://file"),
        ({"model": "x"}, {}, None),
        ({}, {"LLAMA_CHAT_MODEL": "x"}, None),
        ({"endpoint": "http://flag"}, {"LLAMA_CHAT_MODEL": "x"}, "http://flag"),
        ({"model": "x"}, {"LLAMA_CHAT_ENDPOINT": "http://e"}, None),
        ({"model": "endpoint:http://m"}, {}, "http://m"),
        ({"endpoint": "http://flag"}, {"LLAMA_CHAT_MODEL": "endpoint:http://m"}, "http://flag"),
    ],
)
def test_of_model_and_endpoint_the_closer_one_counts(
    tmp_path: Path, flags: dict[str, str], environment: dict[str, str], url: str | None
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "y"\nendpoint = "http://file"\n')
    assert load_settings(flags, file, environment).server_url == url
