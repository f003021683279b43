"""Shell scripts can rely on clean streams, exit statuses, closed pipes and signals."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from harness.program import COMMAND, Program, assert_clean_error, environment, run
from llama_chat.generation.events import Token
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling
from tests.conftest import ROOT
from tests.model_files import write_gguf


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def shell(command: str, home: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command line in which ``llama-chat`` is the program."""
    program = " ".join(COMMAND)
    return subprocess.run(
        ["bash", "-c", f'llama-chat() {{ {program} "$@"; }}; set -o pipefail; {command}'],
        cwd=ROOT,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environment(home, **env),
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="session")
def starter_env(starter_model: Path) -> dict[str, str]:
    """Variables that choose the starter model, short replies and greedy sampling."""
    return {
        "LLAMA_CHAT_MODEL": str(starter_model),
        "LLAMA_CHAT_MAX_TOKENS": "24",
        "LLAMA_CHAT_TEMPERATURE": "0",
    }


@pytest.mark.parametrize(
    "command",
    [
        'echo "Say hi" | llama-chat',
        'llama-chat ask "What is this?" < LICENSE',
        "llama-chat complete prompts/zero_shot/quantum_entanglement.txt | cat",
        "llama-chat complete - < prompts/one_shot/apple_in_japan.txt",
        "llama-chat -q complete few_shot/translate_to_french",
    ],
)
def test_the_three_ways_of_use_write_only_the_answer(
    command: str, home: Path, starter_env: dict[str, str]
) -> None:
    done = shell(command, home, **starter_env)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert text.strip()
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\x1b" not in text
    assert "llama-chat" not in text
    leftover = [
        line for line in done.stderr.decode().splitlines() if "cut off after 24 tokens" not in line
    ]
    assert leftover == []


def test_ask_puts_the_document_before_the_question(home: Path, gguf_model: Path) -> None:
    for arguments, stdin, message in [
        (("ask", "why?"), b"the doc\n", b"the doc\n\nwhy?"),
        (("ask", "-"), b"the doc\n", b"the doc"),
        (("ask",), b"the doc", b"the doc"),
        (("ask", "why?"), b"", b"why?"),
        ((), b"the doc\n", b"the doc"),
    ]:
        flags = ("-m", gguf_model, "--max-tokens", "3", "-q")
        wanted = run(*flags, "ask", "--json", message.decode(), home=home)
        got = run(*flags, *arguments, *(("--json",) if arguments else ()), home=home, stdin=stdin)
        assert got.status == wanted.status == 0
        if arguments:
            prompt_tokens = json.loads(wanted.out)["prompt_tokens"]
            assert json.loads(got.out)["prompt_tokens"] == prompt_tokens


def test_json_has_the_documented_keys(home: Path, gguf_model: Path) -> None:
    done = run(
        "complete", "-", "-m", gguf_model, "--json", "--seed", "5", "--max-tokens", "4", home=home,
        stdin=b"the cat\n",
    )  # fmt: skip
    answer = json.loads(done.out)
    assert set(answer) == {
        "text",
        "finish_reason",
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "ttft_s",
        "prefill_tok_s",
        "decode_tok_s",
        "seed",
        "model",
        "receipt",
    }
    assert done.out.count("\n") == 1
    assert answer["finish_reason"] == "length"
    assert answer["completion_tokens"] == 4
    assert answer["prompt_tokens"] == 5
    assert answer["seed"] == 5
    assert answer["model"] == "random"


def test_a_seed_gives_the_same_answer_and_greedy_needs_none(home: Path, gguf_model: Path) -> None:
    flags = ("complete", "-", "-m", gguf_model, "--max-tokens", "8", "-q", "--raw")
    for setting in (("--seed", "7"), ("--temperature", "0")):
        first, second = (run(*flags, *setting, home=home, stdin=b"the").out for _ in range(2))
        assert first == second


def test_several_files_share_one_load_and_one_cache(home: Path, gguf_model: Path) -> None:
    for name, text in (("a.txt", "the hat, and more"), ("b.txt", "the house, and more of it")):
        (home / name).write_text("the cat in the hat and " * 3 + text)
    done = run(
        "complete", home / "a.txt", home / "b.txt", "-m", gguf_model, "--json", "-q",
        "--max-tokens", "2", home=home,
    )  # fmt: skip
    first, second = map(json.loads, done.out.splitlines())
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= 10


def test_answers_to_several_questions_of_a_file_are_told_apart(
    home: Path, gguf_model: Path
) -> None:
    questions = ["the cat", "a  long\n" + "hat " * 40, "\u001b[2J"]
    shown = ["the cat", "a long" + " hat" * 13 + " …", "␛[2J"]
    several = "".join(f"[[examples]]\nuser = {json.dumps(q)}\n" for q in questions)
    (home / "several.toml").write_text("max_tokens = 1\n" + several)
    (home / "one.toml").write_text('max_tokens = 1\n[[examples]]\nuser = "the cat"')
    titles = [f"==> several.toml: {question} <==" for question in shown]
    # A random model may end a sampled answer at once, which is a warning.
    flags = ("complete", "-m", gguf_model, "--max-tokens", "1", "--temperature", "0")
    for files, lines in (
        (["several.toml"], titles),
        (["one.toml"], []),
        (["one.toml", "several.toml"], ["==> one.toml <==", *titles]),
    ):
        done = run(*flags, *files, home=home, folder=str(home))
        assert (done.status, done.err.splitlines()) == (0, lines)
    for more in ("--json", "-q"):
        assert run(*flags, more, "several.toml", home=home, folder=str(home)).err == ""


def test_echo_writes_the_prompt_and_one_final_newline_is_no_part_of_it(
    home: Path, gguf_model: Path
) -> None:
    flags = ("complete", "-", "-m", gguf_model, "--max-tokens", "3", "--temperature", "0", "-q")
    plain = run(*flags, home=home, stdin=b"  the hat\n").out
    data = "a\r\nb\u200e \u05d0\u200f\u061c c\u202ed\re"
    shown = run(*flags, "--echo", home=home, stdin=data.encode()).out
    assert shown.startswith(data.replace("\u202e", "\ufffd").replace("\re", "␍e"))
    echoed = run(*flags, "--echo", home=home, stdin=b"  the hat").out
    assert echoed == "  the hat" + plain


def test_a_trailing_space_earns_a_warning(home: Path, gguf_model: Path) -> None:
    done = run("complete", "-", "-m", gguf_model, "--max-tokens", "1", home=home, stdin=b"the ")
    assert done.status == 0
    assert "warning: prompt 'stdin': ends in white space" in done.err


def test_fail_on_length(home: Path, gguf_model: Path) -> None:
    flags = ("-m", gguf_model, "--max-tokens", "3", "--temperature", "0")
    for command in (("complete", "-"), ("ask",), ("ask", "why?", "--json"), ("-q",), ("--json",)):
        done = run(*flags, *command, "--fail-on-length", home=home, stdin=b"the cat")
        assert done.status == 5
        assert done.err == "llama-chat: error: answer: cut off after 3 tokens: raise --max-tokens\n"
        assert done.out


def test_a_limit_on_the_command_line_is_no_surprise(home: Path, gguf_model: Path) -> None:
    (home / "c.toml").write_text("max_tokens = 3")
    flags = ("-m", gguf_model, "--temperature", "0")
    warning = "llama-chat: warning: answer: cut off after 3 tokens: raise --max-tokens"
    for command in (("complete", "-"), ("ask", "--json"), ()):
        given = run(*flags, "--max-tokens", "3", *command, home=home, stdin=b"the cat")
        assert (given.status, given.err) == (0, "")
        for more in (("-v", "--max-tokens", "3"), ("--config", home / "c.toml")):
            done = run(*flags, *more, *command, home=home, stdin=b"the cat")
            assert done.status == 0
            assert done.err.splitlines()[-1] == warning
    limited = run(*flags, "ask", home=home, stdin=b"the cat", LLAMA_CHAT_MAX_TOKENS="3")
    assert limited.err == warning + "\n"
    narrow = ("--context", "16", "--max-tokens", "100")
    full = run(*flags, *narrow, "complete", "-", home=home, stdin=b"the cat")
    assert "tokens, where the context is full: shorten the prompt" in full.err


def test_a_reader_that_leaves_stops_the_answer_quietly(
    home: Path, starter_env: dict[str, str]
) -> None:
    env = starter_env | {"LLAMA_CHAT_MAX_TOKENS": "100000"}
    prompt = "prompts/zero_shot/quantum_entanglement.txt"
    for reader in ("head -1", "head -c 1"):
        command = f"llama-chat complete {prompt} | {reader}; echo ${{PIPESTATUS[0]}}"
        done = shell(command, home, **env)
        assert done.stdout.decode().splitlines()[-1].endswith("141")
        assert done.stderr == b""


def test_output_that_cannot_be_written_is_an_error(home: Path, gguf_model: Path) -> None:
    base = f"echo hi | llama-chat -q -m {gguf_model} --max-tokens 3"
    for redirect, status, reason in ((">/dev/full", 6, "no space left"), (">&-", 1, "closed")):
        done = shell(f"{base} {redirect}", home)
        assert done.returncode == status
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("llama-chat: error: stdout: " + reason)


def test_text_is_utf_8_whatever_the_locale(home: Path, starter_env: dict[str, str]) -> None:
    command = "printf 'Write 日本語 😀' | llama-chat complete - --echo --max-tokens 2 -q"
    done = shell(command, home, **starter_env, LC_ALL="C", LANG="C", PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout.decode().startswith("Write 日本語 😀")


def test_control_bytes_of_a_model_reach_a_pipe_only_under_raw(home: Path, gguf_model: Path) -> None:
    # A random byte-level model writes control characters before long.
    flags = ("complete", "-", "-m", gguf_model, "--max-tokens", "200", "--seed", "1", "-q")
    hot = ("--temperature", "3", "--top-p", "1")
    safe, raw = (run(*flags, *hot, *more, home=home, stdin=b"the") for more in ((), ("--raw",)))
    controls = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]} - {"\n", "\t"}
    assert controls & set(raw.out)
    assert not controls & set(safe.out)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_answering_end_at_once_with_their_status(
    number: int, status: int, home: Path, starter_env: dict[str, str]
) -> None:
    arguments = ("complete", "quantum_entanglement", "--max-tokens", "100000")
    with Program(*arguments, home=home, **starter_env) as child:
        first = os.read(child.stdout.fileno(), 1)
        child.kill(number)
        out, err = child.communicate(seconds=20)
    assert child.returncode == status
    assert (first + out).endswith(b"\n")
    assert err == b""


def test_an_empty_answer_earns_a_warning(home: Path, gguf_model: Path) -> None:
    llama = load(gguf_model)
    first = next(llama.generate(llama.prompt_ids("the"), Sampling(temperature=0)))
    assert isinstance(first, Token)
    # The same weights, with that token as the end of a text.
    write_gguf(home / "m.gguf", metadata={"tokenizer__ggml__eos_token_id": first.id})
    flags = ("-m", home / "m.gguf", "--temperature", "0")
    done = run("complete", "-", *flags, home=home, stdin=b"the")
    assert (done.status, done.out) == (0, "")
    ended = "warning: answer: the model ended it at once"
    assert done.err.endswith(f"{ended}: raise --temperature, or try complete --chat\n")
    assert run("complete", "-", *flags, "-q", home=home, stdin=b"the").err == ""
    # As a message it is ended at once with the token that greedy decoding takes first after it.
    session = llama.chat(sampling=Sampling(temperature=0))
    first = next(session.send("the"))
    assert isinstance(first, Token)
    write_gguf(home / "m.gguf", metadata={"tokenizer__ggml__eos_token_id": first.id})
    for command in (["ask", "the"], [], ["complete", "-", "--chat"]):
        done = run(*command, *flags, home=home, stdin=b"the" if command != ["ask", "the"] else b"")
        assert (done.status, done.out) == (0, "")
        assert done.err.endswith(f"{ended}: raise --temperature\n")
    warm = ("--temperature", "1", "--top-k", "1")
    done = run("ask", "the", "-m", home / "m.gguf", *warm, home=home)
    assert done.err.endswith(f"{ended}: try another --seed\n")


def test_interrupt_while_importing_is_quiet(home: Path, gguf_model: Path) -> None:
    child = subprocess.Popen(
        [*COMMAND, "ask", "hi", "-m", str(gguf_model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home, PYTHONVERBOSE="1"),
    )
    assert child.stderr is not None
    # The interpreter reports each import: interrupt in the middle of torch's.
    seen = b""
    while b"import 'torch." not in seen:
        seen = child.stderr.readline()
        if not seen:
            break
        if b"llama_chat.cli.ask" in seen and child.stdin is not None:
            child.stdin.close()  # the program reads stdin before it imports torch
            child.stdin = None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert b"Traceback" not in err


def test_tokenize_gives_ids_and_pieces(home: Path, shared_data: Path) -> None:
    tokenizer = shared_data / "llama2" / "tokenizer.model"
    for entry in json.loads((shared_data / "llama2" / "texts.json").read_text())[:3]:
        done = run("tokenize", "-m", tokenizer, "--json", home=home, stdin=entry["text"].encode())
        answer = json.loads(done.out)
        assert answer["ids"] == entry["ids"]
        assert len(answer["pieces"]) == len(entry["ids"])
    for number, entry in enumerate(
        json.loads((shared_data / "llama2" / "dialogs.json").read_text())
    ):
        file = home / f"{number}.json"
        file.write_text(json.dumps(entry["dialog"]))
        done = run("tokenize", "-m", tokenizer, "--dialog", file, "--json", home=home)
        assert json.loads(done.out)["ids"] == entry["ids"]


def test_inspect_tells_shape_and_memory(home: Path, meta_model: Path) -> None:
    report = json.loads(run("inspect", meta_model, "--json", home=home).out)
    assert report["format"] == "Meta"
    assert report["architecture"]["n_kv_heads"] == 4
    assert report["template"]["name"] == "llama2"
    assert len(report["tensors"]) == 21
    assert report["memory"]["4096"] > report["memory"]["1024"]
    text = run("inspect", meta_model, home=home).out
    assert f"{report['parameters']:,}" in text


def test_bench_json_has_the_documented_keys(home: Path, gguf_model: Path) -> None:
    done = run(
        "bench", "-m", gguf_model, "--json", "--rounds", "1", "--prompt-tokens", "20",
        "--new-tokens", "4", home=home,
    )  # fmt: skip
    report = json.loads(done.out)
    keys = {"load_s", "prefill_tok_s", "decode_tok_s", "ttft_s", "bandwidth_gb_s"}
    keys |= {"bandwidth_used", "kernel", "threads", "peak_rss_mb"}
    assert keys <= report.keys()
    assert all(report[key] > 0 for key in keys - {"kernel", "bandwidth_used"})
    assert all(ms > 0 for ms in report["token_ms"].values())


@pytest.mark.parametrize("quantize", ["int8", "none"])
def test_bench_draws_the_parts_of_the_time_of_a_token(
    home: Path, gguf_model: Path, quantize: str
) -> None:
    done = run(
        "bench", "-m", gguf_model, "--rounds", "1", "--prompt-tokens", "20", "--new-tokens", "4",
        "--quantize", quantize, home=home,
    )  # fmt: skip
    lines = done.out[done.out.index("One token, ") :].splitlines()[1:]
    labels = ["attention matrices", "attention", "feed-forward", "logits", "sampling", "other"]
    assert [line.split("  ")[1].strip() for line in lines] == labels
    shares = [float(share) for share in re.findall(r"([\d.]+)%", "\n".join(lines))]
    assert abs(sum(shares) - 100) < 1


def test_a_model_is_found_by_the_name_it_was_fetched_under(home: Path, starter_model: Path) -> None:
    folder = home / ".local/share/llama-chat/models/smollm2-135m"
    folder.mkdir(parents=True)
    (folder / starter_model.name).symlink_to(starter_model)
    for flags in ((), ("-m", "smollm2-135m")):
        done = run("tokenize", *flags, "--json", home=home, stdin=b"hi")
        assert json.loads(done.out)["pieces"] == ["hi"]
    result = run("tokenize", "-m", "smollm2", home=home, stdin=b"hi")
    assert_clean_error(result, 3, "did you mean smollm2-135m?")
