"""Where the tests find real data."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with Meta's tokenizer, the stories models and golden ids."""
    path = (ROOT / os.environ.get("LLAMA_CHAT_TEST_DATA", "../shared")).resolve()
    if not path.is_dir():
        pytest.skip(f"no test data at {path} (set LLAMA_CHAT_TEST_DATA)")
    return path
