"""Stop strings end a text exactly before them, however it is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from llama_chat.generation.stopping import StopStrings

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
