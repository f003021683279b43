"""Stop strings end a text exactly before them, however it is cut into pieces."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.program import run as run_program
from llama_chat.generation.stopping import StopStrings
from llama_chat.loading.plan import load
from tests.folders import decoder_of, write_chain, write_tokenizer_files
from tests.model_files import sentencepiece_model
from tests.vocabularies import added, piece_json

texts = st.text(alphabet="ab\n", max_size=30)
stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=3)


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    watcher, out = StopStrings(stops), ""
    for piece in pieces:
        certain, stopped_at = watcher.push(piece)
        out += certain
        if stopped_at is not None:
            return out, stopped_at
    return out + watcher.flush(), None


@given(st.lists(texts, max_size=8), stops)
def test_text_ends_before_a_stop_that_it_contains(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    out, stopped_at = run(pieces, stops)
    if stopped_at is None:
        assert out == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(out + stopped_at)
        assert not any(stop in out for stop in stops)


@given(texts, stops)
def test_nothing_that_cannot_become_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    certain, stopped_at = StopStrings(stops).push(text)
    if stopped_at is None and (held := text[len(certain) :]):
        assert any(stop.startswith(held) for stop in stops)


def test_the_earliest_stop_wins_and_at_one_place_the_longest() -> None:
    assert run(["x\nUser:", " hi"], ["hi", "\nUser:", "\n"]) == ("x", "\nUser:")


def test_without_stops_everything_passes_at_once() -> None:
    assert StopStrings([""]).push("abc") == ("abc", None)


CONTROL = {"<a>": 7, "<b>": 8, "<a><b>": 9}
NAMES = {token_id: name for name, token_id in CONTROL.items()}
marked = st.lists(st.one_of(st.sampled_from([7, 8]), st.sampled_from("x<a>b")), max_size=12)
marked_stops = st.lists(
    st.lists(st.sampled_from(["<a>", "<b>", "x", "a", ">"]), min_size=1, max_size=4).map("".join),
    min_size=1,
    max_size=3,
)


def contains(stream: list[int | str], stop: str) -> bool:
    """True if a stream has the tokens and characters of a stop string in a row."""
    parts = [CONTROL.get(part, part) for part in re.findall("<a><b>|<a>|<b>|.", stop)]
    return any(stream[i : i + len(parts)] == parts for i in range(len(stream)))


@given(marked, marked_stops)
def test_control_tokens_are_found_in_stops_and_never_shown(
    stream: list[int | str], stops: list[str]
) -> None:
    stops = [stop for stop in stops if stop not in CONTROL]  # these end a generation by their id
    watcher, out, stopped_at = StopStrings(stops, CONTROL), "", None
    for each in stream:
        text, hidden = (each, None) if isinstance(each, str) else ("", each)
        certain, stopped_at = watcher.push(text, hidden)
        out += certain
        if stopped_at is not None:
            break
    else:
        out += watcher.flush()
    shown = "".join(each for each in stream if isinstance(each, str))
    whole = "".join(each if isinstance(each, str) else NAMES[each] for each in stream)
    assert shown.startswith(out)
    if stopped_at is None:
        assert out == shown
        assert not any(stop in shown or contains(stream, stop) for stop in stops)
    else:
        assert stopped_at in stops
        assert stopped_at in whole or stopped_at in shown


def test_part_of_a_control_token_is_no_stop() -> None:
    watcher = StopStrings([">x", "<b>>"], CONTROL)
    assert watcher.push("", 7) == ("", None)
    assert watcher.push("x") == ("x", None)
    assert watcher.push("", 8) == ("", None)
    assert watcher.push("x") == ("x", None)


def test_a_control_token_between_those_of_a_stop_divides_it() -> None:
    watcher = StopStrings(["<b>x"], CONTROL)
    assert watcher.push("", 8) == ("", None)
    assert watcher.push("", 7) == ("", None)
    assert watcher.push("x") == ("x", None)


def test_a_text_is_found_across_control_tokens() -> None:
    watcher = StopStrings(["xy", "<a>z"], CONTROL)
    assert watcher.push("wx", 7) == ("w", None)
    assert watcher.push("y", None) == ("", "xy")


# --- In a model that says ONE, <turn>, TWO, <other>, 2 -------------------------------------------

MODEL = sentencepiece_model()
VOCAB = piece_json(MODEL)["model"]["vocab"]
SIZE = len(VOCAB)
ONE, TWO = sorted((piece for piece in VOCAB if piece.isalpha()), key=len)[-2:]
CASES = {
    "none": ([], f"{ONE}{TWO}"),
    "a token": (["<turn>"], ONE),
    "another token": (["<other>"], f"{ONE}{TWO}"),
    "the end token": (["</s>"], f"{ONE}{TWO}"),
    "a token and text": ([f"<turn>{TWO}"], ONE),
    "text and a token": ([f"{ONE}<turn>"], ""),
    "the end of a text and a token": ([f"{ONE[-1]}<turn>{TWO[0]}"], ONE[:-1]),
    "text and the end token": ([f"{TWO}<other></s>"], ONE),
    "tokens": (["<other></s>"], f"{ONE}{TWO}"),
    "other text and a token": (["x<turn>", f"<turn>{TWO}x"], f"{ONE}{TWO}"),
    "text of a token": (["turn>", "<tur"], f"{ONE}{TWO}"),
    "several": (["zzz", TWO, "<turn>"], ONE),
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops") / "m"
    tokens = [added(SIZE, "<turn>"), added(SIZE + 1, "<other>")]
    config = {"added_tokens_decoder": decoder_of(tokens)}
    write_tokenizer_files(folder, model=MODEL, config=config)
    return write_chain(folder, SIZE + 2, [VOCAB[ONE], SIZE, VOCAB[TWO], SIZE + 1, 2])


@pytest.mark.parametrize("case", CASES)
def test_stops_of_tokens_and_text(case: str, chain: Path) -> None:
    stops, expected = CASES[case]
    llama = load(chain, dtype="float32")
    raw = list(llama.generate(llama.prompt_ids("12"), stop=stops, max_tokens=9))
    session = llama.chat(template="plain", stop=stops, max_tokens=9)
    said = list(session.send("12"))
    for events in (raw, said):
        assert "".join(event.text for event in events) == expected
        assert events[-1].reason == "stop"  # type: ignore[union-attr]
    reply = session.conversation.head
    assert reply is not None
    assert reply.text == expected
    assert reply.ids is None or llama.tokenizer.decode(reply.ids) == expected


def test_a_stop_that_is_a_token_keeps_the_ids_of_a_reply(chain: Path) -> None:
    session = load(chain, dtype="float32").chat(template="plain", stop=["<turn>"])
    list(session.send("12"))
    assert session.conversation.head is not None
    assert session.conversation.head.ids == (VOCAB[ONE],)


@pytest.mark.parametrize("command", [("ask", "12", "--template", "plain"), ("complete", "-")])
def test_stop_on_the_command_line(command: tuple[str, ...], chain: Path, tmp_path: Path) -> None:
    flags = ("-m", chain, "--stop", f"{ONE[-1]}<turn>")
    done = run_program(*command, *flags, home=tmp_path, stdin=b"12" if "-" in command else b"")
    assert (done.status, done.out) == (0, f"{ONE[:-1]}\n")
