"""Parsers to attack: good files of each, their mutations, and what reads them."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import gguf
import torch

from harness.campaigns.text import kinds
from llama_chat.chat import store
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.dialogs import parse_dialog
from llama_chat.documents import MAX_JSON_BYTES
from llama_chat.files import read_text
from llama_chat.loading.formats import load_tokenizer, open_checkpoint, open_tokenizer
from tests.conversations import TAG, conversation_of
from tests.fuzz import archives, binaries, texts
from tests.fuzz.documents import mutate_json, mutate_lines
from tests.fuzz.requests import BODIES, Server
from tests.meta_folders import ranks, tekken, write_mistral
from tests.model_files import (
    META,
    SMALL,
    edit_json,
    sentencepiece_model,
    write_gguf,
    write_huggingface,
    write_llama2c,
    write_meta,
)
from tests.vocabularies import piece_json, piece_tables

TINY = replace(META, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, hidden_dim=128)
TINY_GGUF = replace(SMALL, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=32)

Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """A parser, ready to read one file after the other."""

    file: Path
    """File to write each input to."""
    seeds: list[bytes]
    mutate: Mutate
    read: Callable[[], object]
    """Reads the file."""


def _gguf(folder: Path) -> Target:
    file, tables = folder / "m.gguf", piece_tables(sentencepiece_model())
    pieces = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__pre": None,
        "tokenizer__ggml__merges": None,
        "tokenizer__ggml__tokens": tables["tokens"],
        "tokenizer__ggml__scores": tables["scores"],
        "tokenizer__ggml__token_type": tables["types"],
        "tokenizer__ggml__unknown_token_id": 0,
        "tokenizer__ggml__bos_token_id": 1,
        "llama__rope__scaling__factor": 2.0,
    }
    kinds_of_weights = gguf.GGMLQuantizationType
    seeds = []
    for more, kind, n_vocab in (
        ({}, kinds_of_weights.F32, TINY_GGUF.vocab_size),
        ({}, kinds_of_weights.Q4_0, TINY_GGUF.vocab_size),
        (pieces, kinds_of_weights.Q8_0, 400),
    ):
        config = replace(TINY_GGUF, vocab_size=n_vocab)
        write_gguf(file, config, quantization=kind, metadata=more)
        seeds.append(file.read_bytes())
    return Target(file, seeds, binaries.mutate_gguf, lambda: _whole_model(file))


def _whole_model(path: Path) -> None:
    """Open a model with its tokenizer, and read all weights."""
    checkpoint = open_checkpoint(path)
    load_tokenizer(checkpoint)
    for name in checkpoint.tensors:
        checkpoint.read(name, torch.float32)
        checkpoint.read_packed(name, torch.device("cpu"))


def _hugging_face(file_name: str, mutate: Mutate, folder: Path) -> Target:
    """Attack a file of a Hugging Face folder that has every kind of file."""
    import transformers  # slow; see running.py

    transformers.logging.disable_progress_bar()
    write_huggingface(folder, TINY, weights="shards" if "index" in file_name else "safetensors")
    config = folder / "tokenizer_config.json"
    edit_json(config, tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>")
    edit_json(config, chat_template="{{ messages[0].content }}", add_bos_token=True)
    decoder = {"400": {"content": "<|im_end|>", "special": True}}
    edit_json(config, added_tokens_decoder=decoder, additional_special_tokens=["<s>"])
    edit_json(folder / "generation_config.json", temperature=0.5, eos_token_id=[2], top_k=5)
    if file_name == "tokenizer.json":
        (folder / "tokenizer.model").unlink()
        (folder / file_name).write_text(json.dumps(piece_json(sentencepiece_model())))
    file = folder / file_name
    return Target(file, [file.read_bytes()], mutate, lambda: _whole_model(folder))


def _meta(file_name: str, mutate: Mutate, folder: Path) -> Target:
    """Attack a file of a folder of Meta."""
    write_meta(folder, TINY)
    edit_json(folder / "params.json", rope_theta=10_000.0, ffn_dim_multiplier=1.0)
    file = folder / file_name
    return Target(file, [file.read_bytes()], mutate, lambda: _whole_model(folder))


def _pickle(folder: Path) -> Target:
    """Attack the pickle in an archive, which is written again around it."""
    write_meta(folder, TINY)
    file = folder / "consolidated.00.pth"

    def mutate(data: bytes, random: Random) -> bytes:
        return archives.mutate_pickle(data, random)

    return Target(file, [file.read_bytes()], mutate, lambda: _whole_model(folder))


def _sentencepiece(folder: Path) -> Target:
    file = folder / "tokenizer.model"
    seeds = [sentencepiece_model(), sentencepiece_model(("<x>",), ("<y>",))]
    return Target(file, seeds, binaries.mutate_sentencepiece, lambda: _encode(file))


def _encode(path: Path) -> None:
    tokenizer, _ = open_tokenizer(path)
    tokenizer.decode(tokenizer.encode("the cat 🦙 <s>"))


def _ranked(folder: Path) -> Target:
    file = folder / "tokenizer.model"
    return Target(file, [ranks()], archives.mutate_bytes, lambda: _encode(file))


def _tekken(folder: Path) -> Target:
    write_mistral(folder)
    file = folder / "tekken.json"
    return Target(file, [json.dumps(tekken()).encode()], mutate_json, lambda: _encode(file))


def _llama2c(folder: Path) -> Target:
    file = folder / "m.bin"
    write_llama2c(file, replace(TINY, context_length=64))
    return Target(file, [file.read_bytes()], binaries.mutate_llama2c, lambda: _whole_model(file))


def _pairs(folder: Path) -> Target:
    """Attack the vocabulary of llama2.c."""
    write_llama2c(folder / "m.bin", replace(TINY, context_length=64))
    (folder / "tokenizer.model").unlink()
    tables = piece_tables(sentencepiece_model())
    data = (16).to_bytes(4, "little")
    for piece, score in zip(tables["tokens"], tables["scores"], strict=True):
        data += binaries.pair(piece.encode(), score)
    file = folder / "tokenizer.bin"
    return Target(file, [data], binaries.mutate_pairs, lambda: _whole_model(folder / "m.bin"))


def _of_text(name: str, folder: Path) -> Target:
    """Attack settings, or prompt files, as ``make attack-text`` does."""
    os.environ["HOME"] = str(folder)
    kind = next(kind for kind in kinds() if kind.name == name)
    file = folder / ".config/llama-chat/prompts/mutated.toml"
    file.parent.mkdir(parents=True)

    def mutate(data: bytes, random: Random) -> bytes:
        return texts.mutate(data, kind.good, kind.keys, random)

    seeds = [data for data in kind.good if b"=" in data]  # others are plain text
    return Target(file, seeds, mutate, lambda: kind.read(file))


def _conversation(folder: Path) -> Target:
    os.environ["XDG_DATA_HOME"] = str(folder)
    saved = ConversationFile()
    saved.save(conversation_of(3), TAG)
    path = store.path_of(saved.name)
    saved.close()
    file = path.with_name(f"mutated{store.SUFFIX}")
    sealed = path.read_bytes()
    # Without checksums, so that what was changed is read and not only skipped.
    unsealed = re.sub(rb', "crc32": "[0-9a-f]{8}"', b"", sealed)
    return Target(file, [sealed, unsealed], mutate_lines, lambda: store.read(file))


def _dialog(folder: Path) -> Target:
    file = folder / "dialog.json"
    messages = [{"role": role, "content": "the cat"} for role in ("system", "user", "assistant")]

    def read() -> None:
        parse_dialog(read_text(file, "dialog", "check it", MAX_JSON_BYTES), "dialog")

    return Target(file, [json.dumps(messages).encode()], mutate_json, read)


def _requests(folder: Path) -> Target:
    """Attack the server by a file with a head and a body."""
    server, file = Server(folder), folder / "request"
    return Target(file, BODIES, server.mutate, lambda: server.answer(file.read_bytes()))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "gguf": _gguf,
    "safetensors": partial(_hugging_face, "model.safetensors", binaries.mutate_safetensors),
    "index": partial(_hugging_face, "model.safetensors.index.json", mutate_json),
    "pth": partial(_meta, "consolidated.00.pth", archives.mutate),
    "pickle": _pickle,
    "params": partial(_meta, "params.json", mutate_json),
    "config": partial(_hugging_face, "config.json", mutate_json),
    "tokenizer-config": partial(_hugging_face, "tokenizer_config.json", mutate_json),
    "generation-config": partial(_hugging_face, "generation_config.json", mutate_json),
    "tokenizer-json": partial(_hugging_face, "tokenizer.json", mutate_json),
    "sentencepiece": _sentencepiece,
    "ranked": _ranked,
    "tekken": _tekken,
    "llama2c": _llama2c,
    "llama2c-tokenizer": _pairs,
    "settings": partial(_of_text, "settings"),
    "prompts": partial(_of_text, "prompts"),
    "conversations": _conversation,
    "dialogs": _dialog,
    "requests": _requests,
}
"""All parsers by their names; each is made in an empty folder."""

MAIN = (
    *("gguf", "safetensors", "index", "pth", "pickle", "params", "config", "tokenizer-json"),
    *("sentencepiece", "llama2c", "settings", "prompts", "conversations", "requests"),
)
"""Parsers that get most inputs; the others read the files beside."""
