"""An access token of the hub that cannot be read is an error in one line."""

from pathlib import Path

import pytest

from tests.hub import Hub, files_below, pull


@pytest.mark.parametrize(
    ("content", "why"), [(None, "is a directory"), (b"hf_\xff\xfe", "it is not a text")]
)
def test_a_token_that_cannot_be_read(
    content: bytes | None, why: str, hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"a.gguf": b"GGUF"}
    token = tmp_path / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.mkdir() if content is None else token.write_bytes(content)
    done = pull(hub, tmp_path, "org/name")
    advice = "check it, or log in with `hf auth login`, or set HF_TOKEN"
    assert done.err == f"llama-chat: error: access token {str(token)!r}: {why}: {advice}\n"
    assert done.status == 1
    assert hub.asked == []
    assert not files_below(tmp_path / ".local/share/llama-chat/models")
    given = pull(hub, tmp_path, "org/name", HF_TOKEN="hf_given")
    assert given.status == 0, given  # the file is not read then
