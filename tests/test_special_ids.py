"""For random vocabularies of every source, no text becomes a special token."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.checkpoints.gguf_metadata import Metadata
from llama_chat.checkpoints.gguf_vocabulary import read_vocabulary
from llama_chat.checkpoints.huggingface_tokenizer import read_vocabulary as read_folder
from llama_chat.loading.formats import make_tokenizer
from llama_chat.tokenizers.tokenizer_json import TokenizerJson
from llama_chat.tokenizers.vocabulary import AddedToken, Vocabulary
from tests.folders import decoder_of, write_tokenizer_files
from tests.model_files import MERGES, TOKENS, sentencepiece_model
from tests.vocabularies import byte_level_json, piece_json, piece_tables

MODEL = sentencepiece_model()
TABLES = piece_tables(MODEL)
PIECES = piece_json(MODEL)
SPACED = piece_json(MODEL, metaspace=True)
BYTES = byte_level_json()
# Its control tokens are new ones here.
BYTES["model"]["vocab"] = {token: i for i, token in enumerate(TOKENS[3:])}
BYTES |= {"added_tokens": [], "post_processor": None}

MARKERS = [
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<\uff5cuser\uff5c>", "<|\ue000|>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<think>", "<pad>", "[X]"),
    *("\u2581<PRE>", "</s>", "<s>", "<unk>", "<0x0A>"),
]
WORDS = [
    "user",
    "assistant",
    "system",
    "USER:",
    "\ue000",
    "\uf8ff",
    "\U000f0000",
    "the",
    "\n\n",
    "  ",
]
NAMES = [*MARKERS, *WORDS]
FRAGMENTS = [*NAMES, " ", "\n", "a", "<", "|", ">", "im_start", "[", "]", "é", "😀", "\u2581"]

flags = st.booleans()
tokens = st.lists(
    st.builds(AddedToken, st.sampled_from(NAMES), flags, flags, flags, flags, flags),
    max_size=6,
    unique_by=lambda token: token.text,
)
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


def new(drawn: Sequence[AddedToken], known: Sequence[str]) -> list[AddedToken]:
    """Return the drawn tokens that a vocabulary does not have yet."""
    return [token for token in drawn if token.text not in known]


def entries(found: Sequence[AddedToken], first: int) -> list[dict[str, Any]]:
    return [
        {**{key: value for key, value in asdict(token).items() if key != "text"}}
        | {"id": first + i, "content": token.text}
        for i, token in enumerate(found)
    ]


def of_json(document: dict[str, Any]) -> Callable[[list[AddedToken], Path], Vocabulary]:
    def make(drawn: list[AddedToken], folder: Path) -> Vocabulary:
        vocab = document["model"]["vocab"]
        more = entries(new(drawn, [*vocab]), len(vocab))
        changed = {**document, "added_tokens": [*document["added_tokens"], *more]}
        (folder / "tokenizer.json").write_text(json.dumps(changed))
        return TokenizerJson(folder / "tokenizer.json").vocabulary()

    return make


def of_folder(drawn: list[AddedToken], folder: Path) -> Vocabulary:
    more = entries(new(drawn, TABLES["tokens"]), len(TABLES["tokens"]))
    config = {"added_tokens_decoder": decoder_of(more), "legacy": len(drawn) % 2 == 0}
    return read_folder(write_tokenizer_files(folder, model=MODEL, config=config))


def of_both(drawn: list[AddedToken], folder: Path) -> Vocabulary:
    of_json(PIECES)(drawn, folder)
    return read_folder(write_tokenizer_files(folder, model=MODEL))


def of_gguf_pieces(drawn: list[AddedToken], _: Path) -> Vocabulary:
    found = new(drawn, TABLES["tokens"])
    return gguf(
        "llama",
        [*TABLES["tokens"], *(token.text for token in found)],
        [*TABLES["types"], *map(gguf_type, found)],
        scores=[*TABLES["scores"], *(0.0 for _ in found)],
        bos_token_id=1,
        eos_token_id=2,
    )


def of_gguf_merges(drawn: list[AddedToken], _: Path) -> Vocabulary:
    found = new(drawn, TOKENS)
    return gguf(
        "gpt2",
        [*TOKENS, *(token.text for token in found)],
        [3, 3, 3, *(1 for _ in TOKENS[3:]), *map(gguf_type, found)],
        merges=MERGES,
        pre="llama-bpe",
        eos_token_id=len(TOKENS) + len(found) - 1,
    )


def gguf_type(token: AddedToken) -> int:
    """Return any type that a converter may have given to a token, and makes it special."""
    if token.special:
        return 3
    return 1 if token.text in CHATS and token.lstrip else 4


CHATS = [name for name in MARKERS if name.startswith(("<|i", "<|e", "<\uff5c", "<<"))]


def gguf(model: str, pieces: list[str], types: list[int], **values: object) -> Vocabulary:
    key = "tokenizer.ggml."
    named = {f"{key}{name}": value for name, value in values.items()}
    tables = {f"{key}model": model, f"{key}tokens": pieces, f"{key}token_type": types}
    return read_vocabulary(Metadata("model", tables | named))


SOURCES: dict[str, Callable[[list[AddedToken], Path], Vocabulary]] = {
    "tokenizer.json of bytes": of_json(BYTES),
    "tokenizer.json of pieces": of_json(PIECES),
    "tokenizer.json with Metaspace": of_json(SPACED),
    "tokenizer.model": of_folder,
    "both files": of_both,
    "GGUF of pieces": of_gguf_pieces,
    "GGUF of merges": of_gguf_merges,
}


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=80)
@given(drawn=tokens, text=texts, data=st.data())
def test_no_text_becomes_a_special_token(
    source: str, drawn: list[AddedToken], text: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = SOURCES[source](drawn, Path(folder))
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces)}
    added = {token.text: token for token in drawn if vocabulary.added.get(ids.get(token.text, -1))}
    marked = {text for text in ids if text in MARKERS and text != "<0x0A>"}
    special = {ids[text] for text in {*marked, *(t for t, token in added.items() if token.special)}}
    special |= {i for i in (vocabulary.bos_id, vocabulary.eos_id) if i is not None}
    special -= {ids.get("<unk>", -1)} - {ids[text] for text in added}  # it stands for characters
    ordinary = [
        i for text, i in ids.items() if vocabulary.types[i] in (1, 6) and text not in marked
    ]
    n_rows = data.draw(st.integers(max(ordinary) + 1, len(ids)))
    tokenizer = make_tokenizer(vocabulary.limited(n_rows))
    spans = [(0, len(text) // 2), (len(text) // 3, len(text))]
    for encoded in (
        tokenizer.encode(text),
        tokenizer.encode(text, prefixed=False),
        tokenizer.encode(text, spell=spans),
    ):
        assert not special & set(encoded)
        assert all(0 <= i < n_rows for i in encoded)
