"""Fixtures that tests share: models, test data and chats."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from harness.process import cold, fork_server
from harness.terminal import READY, Terminal
from tests.hub import Hub, serving

# Several tests run at a time: two that each want all cores would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Background jobs of a shell ignore Ctrl-C, and so would all programs started here.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Examples of a property that does not state their number; ``--hypothesis-profile thorough``. They
# have no deadlines, since machines are slow while they do other work.
settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("quick")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def runs_are_forks() -> None:
    """Start the fork server before a test changes the environment that it inherits."""
    fork_server()


@pytest.fixture(autouse=True)
def runs_are_cold(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start a new interpreter for each run of the program in a test that is marked ``cold``."""
    everywhere = "LLAMA_CHAT_TEST_COLD" in os.environ
    if everywhere or request.node.get_closest_marker("cold"):
        with cold():
            yield
    else:
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with Meta's tokenizer, the stories models and golden ids."""
    path = (ROOT / os.environ.get("LLAMA_CHAT_TEST_DATA", "../shared")).resolve()
    if not path.is_dir():
        pytest.skip(f"no test data at {path} (set LLAMA_CHAT_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def starter_model() -> Path:
    """The starter model, downloaded as a user downloads it if it is not here yet."""
    from llama_chat.library import starter

    return starter.pull(starter.DEFAULT, lambda done, total: None)


@pytest.fixture(scope="session")
def meta_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in Meta's layout."""
    from tests.model_files import write_meta

    folder = tmp_path_factory.mktemp("meta") / "random"
    write_meta(folder)
    return folder


@pytest.fixture(scope="session")
def huggingface_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in the layout of the Hugging Face Hub, in two shards or more."""
    from tests.model_files import write_huggingface

    folder = tmp_path_factory.mktemp("huggingface") / "random"
    write_huggingface(folder, weights="shards")
    return folder


@pytest.fixture
def huggingface_copy(huggingface_model: Path, tmp_path: Path) -> Path:
    """A copy of that model for a test to change."""
    copy = tmp_path / "model"
    shutil.copytree(huggingface_model, copy)
    return copy


@pytest.fixture(scope="session")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random GGUF model with a chatml template."""
    from tests.model_files import write_gguf

    path = tmp_path_factory.mktemp("gguf") / "random.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def chat(starter_model: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A chat with the starter model, greedy, with short replies."""
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "30")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        yield terminal


@pytest.fixture
def babble(gguf_model: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A chat with a tiny random model, which answers at once with nonsense."""
    flags = ("-m", gguf_model, "--temperature", "0", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        yield terminal


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of conversations of this process, in a home of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "llama-chat" / "conversations"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub on loopback, empty."""
    with serving(Hub()) as hub:
        yield hub
