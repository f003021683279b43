"""Vocabularies of tiktoken, which have ranks instead of merges."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from llama_chat.loading.formats import make_tokenizer, open_tokenizer
from llama_chat.tokenizers.base import Tokenizer, without_surrogates
from llama_chat.tokenizers.ranked import merge_model, read_model_file
from llama_chat.tokenizers.vocabulary import Vocabulary
from tests.meta_folders import N_RANKED, RANKED, ranks
from tests.model_files import MERGES, byte_tokenizer
from tests.vocabularies import hard_texts

BYTES = [bytes([byte]) for byte in range(256)]
TO_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def by_ranks(tokens: list[bytes], word: bytes) -> list[int]:
    """Encode a word as tiktoken does: the leftmost pair of the lowest rank is joined first."""
    known = {token: rank for rank, token in enumerate(tokens)}
    parts = [word] if word in known else [bytes([byte]) for byte in word]
    while True:
        joined = [left + right for left, right in pairwise(parts)]
        places = [at for at, token in enumerate(joined) if token in known]
        if not places:
            return [known[part] for part in parts]
        at = min(places, key=lambda place: known[joined[place]])
        parts[at : at + 2] = [joined[at]]


def of_words(tokens: list[bytes]) -> Tokenizer:
    """Make a tokenizer that takes every text for one word."""
    pieces, model = merge_model("tokens", tokens, {**TO_BYTES, "use_regex": False})
    return make_tokenizer(
        Vocabulary(what="tokens", pieces=pieces, types=[1] * len(pieces), model=model)
    )


@pytest.mark.parametrize("letters", [b"a", b"ab", b"abc"])
def test_random_ranks_give_the_ids_of_tiktoken(letters: bytes) -> None:
    for seed in range(20):
        chance = random.Random(seed)

        def word(longest: int, chance: random.Random = chance) -> bytes:
            return bytes(chance.choices(letters, k=chance.randint(1, longest)))

        more = {word(7) for _ in range(40)} - set(BYTES)
        tokens = [*BYTES, *chance.sample(sorted(more), len(more))]
        if seed % 3 == 0:  # a byte may have a higher rank than the tokens that it is in
            chance.shuffle(tokens)
        tokenizer = of_words(tokens)
        for text in (word(24) for _ in range(40)):
            assert tokenizer.encode(text.decode()) == by_ranks(tokens, text), (seed, text)


def test_texts_have_the_ids_of_merges_with_the_same_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks(RANKED[: 256 + len(MERGES)]))
    tokenizer, _ = open_tokenizer(path)
    merged = byte_tokenizer()  # of the same merges, and another division into words
    ids = {merged.token_bytes(i): i for i in range(merged.vocab_size)}
    for text in ("the thin man", "other hints", " then\n"):
        ours = tokenizer.encode(text)
        assert [ids[tokenizer.token_bytes(i)] for i in ours] == merged.encode(text)


def test_any_text_is_encoded_and_decoded(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks())
    tokenizer, source = open_tokenizer(path)
    assert source.is_meta
    assert (tokenizer.vocab_size, tokenizer.prefix, tokenizer.add_bos) == (N_RANKED, "never", True)
    special = set(tokenizer.control_ids.values())
    for text in [*hard_texts(200), "<|eot_id|>", "x<|begin_of_text|>"]:
        ids = tokenizer.encode(text)
        assert not special & set(ids)
        assert tokenizer.decode(ids) == without_surrogates(text)
    assert tokenizer.encode("unreachable") == [RANKED.index(b"unreachable")]  # a whole word


def test_special_tokens_have_the_places_and_names_of_the_release(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks())
    first = len(RANKED)
    older = read_model_file(path, is_llama_3_0=True)
    newer = read_model_file(path)
    shared = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>"}
    shared |= {7: "<|end_header_id|>", 9: "<|eot_id|>", 2: "<|reserved_special_token_0|>"}
    for place, text in shared.items():
        assert older.pieces[first + place] == newer.pieces[first + place] == text
    assert older.pieces[first + 4] == "<|reserved_special_token_2|>"
    assert older.pieces[first + 8] == "<|reserved_special_token_4|>"
    assert older.pieces[-1] == "<|reserved_special_token_250|>"
    assert newer.pieces[first + 4] == "<|finetune_right_pad_id|>"
    assert newer.pieces[first + 5] == "<|reserved_special_token_2|>"
    assert [newer.pieces[first + i] for i in (8, 10)] == ["<|eom_id|>", "<|python_tag|>"]
    assert newer.pieces[-1] == "<|reserved_special_token_247|>"
    assert (newer.bos_id, newer.eos_id) == (first, first + 1)


_LINES = ranks().splitlines(keepends=True)

BAD: dict[str, tuple[bytes, str]] = {
    "no base64": (_LINES[0] + b"?? 1\n", "line 2: b'??' is no token in base64"),
    "no token": (_LINES[0] + b" 1\n", "line 2: b'' is no token"),
    "no rank": (_LINES[0] + b"IQ==\n", "line 2: its rank is b'', not 1"),
    "a blank line": (b"".join([*_LINES[:3], b"\n"]), "line 4: b'' is no token"),
    "a gap": (b"".join(_LINES[:4] + _LINES[5:]), "line 5: its rank is b'5', not 4"),
    "a rank twice": (b"".join([*_LINES[:4], _LINES[3]]), "line 5: its rank is b'3', not 4"),
    "a token twice": (b"".join(_LINES) + b"YQ== %d\n" % len(_LINES), "its token is that of line"),
    "a long token": (_LINES[0] + b"YWFh" * 200 + b" 1\n", "line 2: b'YWFhYWFh"),
    "a control character": (_LINES[0] + b"\x1b[31m 1\n", r"line 2: b'\x1b[31m' is no token"),
    "bytes missing": (b"".join(_LINES[:100]), "lacks tokens for single bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_refused_by_line(case: str, tmp_path: Path) -> None:
    data, why = BAD[case]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(Exception, match="tokenizer") as caught:
        open_tokenizer(path)
    line = str(caught.value)
    assert why in line
    assert line.isprintable()


def test_tokens_longer_than_those_of_any_model_are_refused(tmp_path: Path) -> None:
    chance = random.Random(0)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks([*BYTES, *(chance.randbytes(250) for _ in range(9000))]))
    with pytest.raises(Exception, match="longer than those of any model"):
        open_tokenizer(path)


def test_more_merges_than_any_model_has_are_refused(tmp_path: Path) -> None:
    words = [format(n, "b")[1:].encode() for n in range(4, 2**16)]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks([*BYTES, *words]))
    with pytest.raises(Exception, match="more merges than that of any model"):
        open_tokenizer(path)
