"""``llama-chat pull`` from a hub: only what is needed, whole, resumable, errors in one line."""

import fcntl
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.program import COMMAND, Program, Result, assert_clean_error, environment, run
from harness.terminal import CTRL_C
from llama_chat.errors import LlamaChatError, ModelError
from llama_chat.hub.fetching import fetch_files
from llama_chat.hub.repository import look_up, parse
from llama_chat.library import installed_models
from llama_chat.loading.hashes import expected_hashes
from tests.hub import (
    COMMIT,
    Hub,
    environment_for,
    files_below,
    pull,
    serving,
    terminal_of,
)

WEIGHTS = bytes(range(256)) * 2000


Fetch = Callable[..., Path]


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Download in this process, which is faster than a run of the program."""
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".local/share"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")

    def fetch(name: str = "org/name", revision: str = "") -> Path:
        wanted = parse(name, revision)
        assert wanted is not None
        return fetch_files(wanted, look_up(wanted), lambda done, total: None)

    return fetch


def refused(fetch: Fetch, home: Path, name: str = "org/name") -> LlamaChatError:
    """Check that a download fails in one line and leaves no data; returns the error."""
    with pytest.raises(LlamaChatError) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)
    assert not any(models(home).values())
    return caught.value


def models(home: Path) -> dict[str, bytes]:
    return files_below(home / ".local/share/llama-chat/models")


def test_of_a_hugging_face_repository_only_what_is_needed_is_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    needed = {
        "config.json": b"{}",
        "generation_config.json": b"{ }",
        "tokenizer.json": b"[]",
        "tokenizer_config.json": b"[ ]",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors.index.json": b"{  }",
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    }
    others = ["README.md", ".gitattributes", "pytorch_model.bin", "original/params.json"]
    others += ["original/consolidated.00.pth", "onnx/model.onnx", "consolidated.safetensors"]
    hub.files = needed | dict.fromkeys(others, b"not this one")
    done = pull(hub, tmp_path, "org/name", HF_TOKEN="hf_secret")
    assert done.status == 0, done
    assert done.err == f"downloaded org/name: {tmp_path}/.local/share/llama-chat/models/org/name\n"
    assert models(tmp_path) == {f"org/name/{path}": data for path, data in needed.items()}
    assert {path for path, _ in hub.asked} == set(needed)
    assert hub.tokens == {"Bearer hf_secret"}
    listed = run("models", home=tmp_path)
    assert listed.out.startswith("org/name\t1.0 MB\tHugging Face\town\t")
    hub.asked.clear()
    assert pull(hub, tmp_path, "org/name", "-q") == Result(0, "", "")
    assert hub.asked == []  # all was there


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])  # SHA-256, SHA-1 of git
def test_what_was_fetched_can_be_checked_later(name: str, hub: Hub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": WEIGHTS}
    assert pull(hub, tmp_path, "org/name").status == 0
    folder = tmp_path / ".local/share/llama-chat/models/org/name"
    stated = {each.file.name: each for each in expected_hashes(folder)}
    assert set(stated) == set(hub.files)
    for each in stated.values():
        each.check(lambda n_bytes: None)
    damaged = folder / name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match="it is not the file of the hub"):
        stated[name].check(lambda n_bytes: None)


def test_a_redirection_to_another_host_is_followed_without_the_token(
    hub: Hub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub({"a.gguf": WEIGHTS})) as storage:
        hub.files, hub.storage = {"a.gguf": WEIGHTS}, storage.url
        fetch()
    assert models(tmp_path) == {"org/name/a.gguf": WEIGHTS}
    assert (hub.tokens, storage.tokens) == ({"Bearer hf_secret"}, {None})


def test_of_metas_layout_only_what_is_needed_is_fetched(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    needed = {"params.json": b"{}", "tokenizer.model": b"model", "consolidated.00.pth": WEIGHTS}
    hub.files = needed | {"checklist.chk": b"", "LICENSE": b"..."}
    fetch("org/name", "v2")
    assert models(tmp_path) == {f"org/name@v2/{path}": data for path, data in needed.items()}


QUANTIZED = {f"chat-{q}.gguf": q.encode() * 1000 for q in ("Q2_K", "Q4_0", "Q4_K_M", "Q8_0")}
SPLIT = {f"F16/chat-F16-0000{n}-of-00002.gguf": b"F16" * 1000 * n for n in (1, 2)}


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        ("", ["chat-Q4_K_M.gguf"]),
        (":q8_0", ["chat-Q8_0.gguf"]),
        ("/chat-Q2_K.gguf", ["chat-Q2_K.gguf"]),
        (":F16", sorted(SPLIT)),
        ("/F16/chat-F16-00001-of-00002.gguf", sorted(SPLIT)),
    ],
)
def test_of_gguf_files_one_quantization_is_taken_with_all_its_parts(
    choice: str, taken: list[str], hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files = QUANTIZED | SPLIT | {"mmproj-chat-F16.gguf": b"eye", "chat.imatrix": b"matrix"}
    path = fetch(f"org/name{choice}")
    assert path == tmp_path / ".local/share/llama-chat/models/org/name" / taken[0]
    assert models(tmp_path) == {f"org/name/{path}": hub.files[path] for path in taken}
    assert {model.name for model in installed_models() if model.source == "own"} == {"org/name"}


def test_the_quantization_taken_is_reported_with_the_others(hub: Hub, tmp_path: Path) -> None:
    hub.files = QUANTIZED | SPLIT
    assert pull(hub, tmp_path, "org/name").err.splitlines() == [
        "taking Q4_K_M; there are also F16, Q2_K, Q4_0, Q8_0",
        "to choose: llama-chat pull org/name:F16",
        f"downloaded org/name: {tmp_path}/.local/share/llama-chat/models/org/name/chat-Q4_K_M.gguf",
    ]


def test_a_choice_that_is_not_there_names_those_that_are(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files = QUANTIZED
    error = refused(fetch, tmp_path, "org/name:Q5_K_M")
    assert error.status == 2
    assert "there is no Q5_K_M in it: it has Q2_K, Q4_0, Q4_K_M, Q8_0" in str(error)


def test_a_broken_download_is_resumed_at_once_and_by_the_next_pull(
    hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    hub.cut = [100_000, 50_000]
    done = pull(hub, tmp_path, "org/name")
    assert_clean_error(done, 1, "the hub answered with status 503", "try again later")
    assert hub.asked == [("a.gguf", None), ("a.gguf", "bytes=100000-")]
    (name, data), *_ = models(tmp_path).items()
    assert (name.endswith(".part"), data) == (True, WEIGHTS[:150_000])
    assert run("models", home=tmp_path).out == ""
    hub.refuse = None
    assert pull(hub, tmp_path, "org/name").status == 0
    assert hub.asked[2:] == [("a.gguf", "bytes=150000-")]
    assert models(tmp_path) == {"org/name/a.gguf": WEIGHTS}


def test_a_hub_without_ranges_sends_it_all_again(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    hub.cut = [100_000]
    with pytest.raises(LlamaChatError):
        fetch()
    hub.refuse, hub.ranges = None, False
    fetch()
    assert models(tmp_path) == {"org/name/a.gguf": WEIGHTS}


def test_a_file_that_changed_on_the_hub_is_fetched_from_the_start(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    hub.cut = [100_000]
    with pytest.raises(LlamaChatError):
        fetch()
    hub.files, hub.refuse = {"a.gguf": WEIGHTS[::-1]}, None
    fetch()
    hub.files = {"a.gguf": WEIGHTS[:-1] + b"!"}
    fetch()
    assert models(tmp_path) == {"org/name/a.gguf": WEIGHTS[:-1] + b"!"}


def test_ctrl_c_says_how_to_resume(hub: Hub, tmp_path: Path) -> None:
    hub.files, hub.stall = {"a.gguf": WEIGHTS}, threading.Event()
    with terminal_of(hub, tmp_path, "pull", "org/name") as terminal:
        terminal.wait_for(r"Downloading org/name \(512 KB\) .*50%")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 130
        assert "interrupted: the same command resumes the download" in terminal.text
        assert "Traceback" not in terminal.text
    hub.stall.set()
    hub.stall = None
    with terminal_of(hub, tmp_path, "pull", "org/name") as terminal:
        assert terminal.wait_for_end() == 0
    assert hub.asked[-1] == ("a.gguf", "bytes=256000-")
    assert models(tmp_path) == {"org/name/a.gguf": WEIGHTS}


def test_two_at_once_do_not_disturb_each_other(hub: Hub, tmp_path: Path) -> None:
    hub.files, hub.stall = {"a.gguf": WEIGHTS}, threading.Event()
    env = environment_for(hub, tmp_path)
    with Program("pull", "org/name", home=tmp_path, stdin=os.devnull, **env) as first:
        end = time.monotonic() + 30
        while not models(tmp_path):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert_clean_error(pull(hub, tmp_path, "org/name"), 1, "another pull is downloading it")
        first.kill(signal.SIGTERM)
        assert b"Traceback" not in first.communicate(seconds=20)[1]
        assert first.returncode == 143


def test_a_file_that_another_pull_completes_in_between_is_there(
    hub: Hub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files, hub.cut = {"a.gguf": WEIGHTS}, [100_000]
    with pytest.raises(LlamaChatError):
        fetch()
    hub.cut, hub.refuse, flock = [], None, fcntl.flock

    def complete_first(file: BinaryIO, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        fetch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", complete_first)
    fetch()
    assert models(tmp_path) == {"org/name/a.gguf": WEIGHTS}


GATED = (403, {"X-Error-Code": "GatedRepo"})
MISSING = (401, {"X-Error-Code": "RepoNotFound"})


@pytest.mark.parametrize(
    ("refusal", "status", "parts"),
    [
        (GATED, 1, ["its licence must be accepted first", "/org/name, then log in", "HF_TOKEN"]),
        (MISSING, 2, ["there is no such repository, or it is not open to all"]),
        ((401, {}), 1, ["it requires a login", "hf auth login"]),
        ((403, {}), 1, ["the access token may not read it"]),
        ((429, {"Retry-After": "7"}), 1, ["asked too often", "wait 7 seconds"]),
        ((500, {}), 1, ["the hub answered with status 500: try again later"]),
        ((400, {}), 1, ["the hub answered with status 400"]),
        ((200, {}), 1, ["an answer that cannot be read: check HF_ENDPOINT"]),
    ],
)
def test_a_refusal_is_one_line_with_a_next_step(
    refusal: tuple[int, dict[str, str]],
    status: int,
    parts: list[str],
    hub: Hub,
    fetch: Fetch,
    tmp_path: Path,
) -> None:
    hub.refuse = refusal
    error = refused(fetch, tmp_path)
    assert error.status == status
    for part in ["repository 'org/name': ", *parts]:
        assert part in str(error)


def test_a_gated_repository_leads_to_its_page(hub: Hub, tmp_path: Path) -> None:
    hub.refuse = GATED
    done = pull(hub, tmp_path, "org/name", HF_TOKEN="hf_wrong")
    assert_clean_error(done, 1, f"at {hub.url}/org/name, then log in with `hf auth login`")
    assert done.err.count("\n") == 1
    assert models(tmp_path) == {}


def test_unknown_names_and_revisions_and_unreachable_hubs_are_errors(
    hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    assert_clean_error(pull(hub, tmp_path, "org/other"), 2, "no such repository")
    assert_clean_error(pull(hub, tmp_path, "org/name--x"), 2, "not a possible name")
    done = pull(hub, tmp_path, "org/name", "--revision", "v3")
    assert_clean_error(done, 2, "'org/name@v3': there is no such revision: check --revision")
    done = pull(hub, tmp_path, "org/name", HF_ENDPOINT="http://127.0.0.1:9")
    assert_clean_error(done, 1, "http://127.0.0.1:9 cannot be reached", "check the network")
    done = pull(hub, tmp_path, "org/name", HF_HUB_ETAG_TIMEOUT="soon")
    assert_clean_error(done, 2, "a variable of the hub cannot be used", "'soon'")
    assert_clean_error(pull(hub, tmp_path, "org/name", HF_TOKEN="é"), 2, "check HF_TOKEN")


def test_the_refusal_of_a_repository_without_a_model_says_what_it_holds(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files = dict.fromkeys(["config.json", "training_args.bin", "onnx/a.onnx", "LICENSE"], b"x")
    error = refused(fetch, tmp_path)
    assert error.status == 3
    assert "it holds files .bin, .json, .onnx, LICENSE: look for one with" in str(error)


def listed(path: str, **fields: object) -> dict[str, object]:
    return {"rfilename": path, "size": 5, "blobId": "0" * 40} | fields


@pytest.mark.parametrize(
    ("overrides", "status", "why"),
    [
        ({"siblings": [listed("../../../x.gguf")]}, 3, "it holds nothing"),
        ({"siblings": [listed("/x.gguf")]}, 3, "it holds nothing"),
        ({"siblings": [listed("\x1b[31m\n.gguf", size=-1)]}, 3, "it holds nothing"),
        ({"siblings": [listed("\x1b[31m\n.onnx")]}, 3, "it holds files .onnx"),
        ({"siblings": [listed("a.gguf", blobId="../x")]}, 3, "it holds nothing"),
        ({"siblings": [listed("a.gguf", size=2**62)]}, 6, "are needed and"),
        (
            {"siblings": [listed("a.gguf")]},
            3,
            "'a.gguf' is not what the hub announced: download it again",
        ),
        ({"siblings": "x"}, 1, "cannot be read"),
        ({"siblings": [7]}, 1, "cannot be read"),
        ({"siblings": [{}]}, 1, "cannot be read"),
        ({"sha": "../../x"}, 1, "cannot be read"),
        ({"sha": None}, 1, "cannot be read"),
    ],
)
def test_an_invalid_answer_of_the_hub_is_refused(
    overrides: dict[str, object],
    status: int,
    why: str,
    hub: Hub,
    fetch: Fetch,
    tmp_path: Path,
) -> None:
    hub.files = {"a.gguf": b"other"}
    hub.overrides = overrides
    error = refused(fetch, tmp_path)
    assert error.status == status
    assert why in str(error)


def test_a_full_disk_is_a_save_error(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    half = len(WEIGHTS) // 2
    done = subprocess.run(
        [*COMMAND, "pull", "org/name"],
        env=environment(tmp_path, **environment_for(hub, tmp_path)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)),
        capture_output=True,
        text=True,
        check=False,
    )
    result = Result(done.returncode, done.stdout, done.stderr)
    assert_clean_error(result, 6, "file too large: set XDG_DATA_HOME")


def test_what_another_program_fetched_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    snapshot = tmp_path / f".cache/huggingface/hub/models--org--name/snapshots/{COMMIT}"
    snapshot.mkdir(parents=True)
    (snapshot / "a.gguf").write_bytes(WEIGHTS)
    done = pull(hub, tmp_path, "org/name")
    assert (done.status, done.err) == (0, f"org/name is already here: {snapshot}/a.gguf\n")
    assert hub.asked == []


@settings(max_examples=50)
@given(st.text(max_size=20) | st.from_regex(r"[\w./:@-]+/[\w./:@-]+"))
def test_any_name_stays_in_our_folder(name: str) -> None:
    if wanted := parse(name, "../../x"):
        folder = wanted.folder
        assert ".." not in folder.parts
        assert folder.parent.parent.name == "models"


def test_with_quiet_nothing_is_written(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    env = {"HF_HUB_ENABLE_HF_TRANSFER": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "0"}
    assert pull(hub, tmp_path, "org/name", "--quiet", **env) == Result(0, "", "")
