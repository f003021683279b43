"""Conversion of any vocabulary to the tables of GGUF."""

from dataclasses import replace

from llama_chat.errors import ModelError
from llama_chat.tokenizers.bpe import pre_tokenizer_name
from llama_chat.tokenizers.sentencepiece_file import scores_of
from llama_chat.tokenizers.vocabulary import MergeModel, PieceModel, TokenType, Vocabulary


def gguf_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary in a form that GGUF has: with scores, or with a named pre-tokenizer.

    Raises:
        ModelError: if there is none.
    """
    model = vocabulary.model
    if isinstance(model, PieceModel):
        return vocabulary
    if not model.byte_level:
        scores = scores_of(vocabulary.pieces, model.merges)
        return replace(vocabulary, model=PieceModel(scores))
    whole_words = model.options.get("ignore_merges", False)
    name = model.name or pre_tokenizer_name(model.pre_tokenizer, whole_words=whole_words)
    if name is None:
        raise ModelError(
            vocabulary.what,
            "it divides text in a way that GGUF has no name for",
            "convert to safetensors, which copies it",
        )
    return replace(vocabulary, model=replace(model, name=name))


def gguf_losses(vocabulary: Vocabulary) -> list[str]:
    """Return what the tables of GGUF cannot express of a vocabulary, a line each."""
    lines = []
    if vocabulary.prefix == "first":
        lines.append(
            "GGUF has no space in front of the first text only: the new model has one in front of "
            "every text"
        )
    strips = [t.text for t in vocabulary.added.values() if t.lstrip or t.rstrip or t.single_word]
    if strips:
        lines.append(f"GGUF has no white space around added tokens: {some(strips)} lose theirs")
    model = vocabulary.model
    if isinstance(model, MergeModel) and (changes := _normalizations(model)):
        lines.append(f"GGUF has no normalization of text: {', '.join(changes)} is left out")
    if vocabulary.rowless:
        names = list(vocabulary.rowless)
        lines.append(f"tokens without a row in the embedding are left out: {some(names)}")
    return lines + undivided(vocabulary)


def undivided(vocabulary: Vocabulary) -> list[str]:
    """Return a warning if user-defined pieces would change spaces in another format.

    SentencePiece matches them within a text. Other formats begin a new text after them, with the
    space that the vocabulary puts before every text.
    """
    found = [
        piece
        for i, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
        if kind == TokenType.USER_DEFINED and i not in vocabulary.added
    ]
    ordinary = [piece for piece in found if piece not in vocabulary.control_ids()] if found else []
    if vocabulary.prefix != "every" or not ordinary:
        return []
    return [f"in the new model a space comes in front of the text after {some(ordinary)}"]


def _normalizations(model: MergeModel) -> list[str]:
    """Return the names of the changes to a text, besides those to its spaces."""
    rule = model.normalizer or {}
    parts = rule.get("normalizers", [rule] if rule else [])
    return [part["type"] for part in parts if part["type"] not in ("Prepend", "Replace")]


def some(names: list[str]) -> str:
    """Return the first names of a list."""
    shown = ", ".join(repr(name[:40]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
