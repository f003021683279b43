"""SentencePiece vocabularies, such as that of Llama 2."""

import base64
import binascii
from pathlib import Path

import sentencepiece

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import DAMAGED, OF_THE_MODEL, SPACE, read_file
from llama_chat.tokenizers.pieces import PieceTokenizer


class SentencePieceTokenizer(PieceTokenizer):
    """Tokenizer of a ``tokenizer.model`` file, or of the bytes of one."""

    kind = "SentencePiece"

    def __init__(self, model: Path | bytes, *, add_bos: bool = True) -> None:
        """Read the file ``model``, or take the bytes of one.

        Raises:
            ModelError: if it is not a SentencePiece model.
        """
        sp = _open(model) if isinstance(model, Path) else parse_model(model)
        if sp is None:
            raise ModelError(OF_THE_MODEL, "its pieces make no SentencePiece vocabulary", DAMAGED)
        self._sp = sp
        ids = list(range(sp.vocab_size()))
        try:
            pieces = sp.id_to_piece(ids)
        except UnicodeDecodeError:
            what = f"tokenizer {str(model)!r}" if isinstance(model, Path) else OF_THE_MODEL
            raise ModelError(what, "a piece of it is not UTF-8", DAMAGED) from None
        table = [piece.replace(SPACE, " ").encode() for piece in pieces]
        control_ids = {}
        kinds = zip(ids, sp.is_control(ids), sp.is_unknown(ids), sp.is_byte(ids), strict=True)
        for i, is_control, is_unknown, is_byte in kinds:
            if is_byte:
                table[i] = bytes([int(pieces[i][3:-1], 16)])
            if is_control or is_unknown:
                table[i] = "\ufffd".encode() if is_unknown else b""
                control_ids[pieces[i]] = i
        super().__init__(pieces, table, control_ids)
        self.bos_id = self._known(self._sp.bos_id())
        self.eos_id = self._known(self._sp.eos_id())
        self.add_bos = add_bos and self.bos_id is not None
        probe = self._sp.encode("a", out_type=str)
        self.dummy_prefix = bool(probe) and probe[0].startswith(SPACE)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._sp.encode(text)
        return ids

    @staticmethod
    def _known(token_id: int) -> int | None:
        return None if token_id < 0 else token_id


def _open(path: Path) -> sentencepiece.SentencePieceProcessor:
    what = f"tokenizer {str(path)!r}"
    advice = "take the tokenizer.model that came with the model"
    data = read_file(path, what)
    if _is_llama_3(data):
        raise ModelError(what, "it is of Llama 3, which has another format", "take a Llama 2 model")
    if data.lstrip()[:1] == b"<":
        raise ModelError(what, "it is a web page, not a tokenizer", "fetch the file itself")
    processor = parse_model(data)
    if processor is None:
        raise ModelError(what, "it is not a SentencePiece model, or damaged", advice)
    return processor


def parse_model(data: bytes) -> sentencepiece.SentencePieceProcessor | None:
    """Return the library's processor; None if ``data`` is not a usable model."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
        usable = processor.vocab_size() > 0 and processor.unk_id() >= 0
    except (RuntimeError, ValueError):
        usable = False
    return processor if usable else None


def _is_llama_3(data: bytes) -> bool:
    """True if the first line is a base64 token and its rank, the format of Llama 3."""
    token, _, rank = data.partition(b"\n")[0].partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.isdigit()
    except binascii.Error:
        return False
