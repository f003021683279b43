"""Published template texts that are written by the templates implemented here.

The tests hold these texts, and prove that both ways give the same ids. Any other text, however
similar, is rendered by Jinja.
"""

import hashlib
from collections.abc import Mapping

_META = {"bos_token": "<s>", "eos_token": "</s>"}
_ZEPHYR = {"eos_token": "</s>"}
_LLAMA_3 = {"bos_token": "<|begin_of_text|>"}

PUBLISHED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    # Llama 2, as in the releases of Meta on the Hub
    "e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf": ("llama2", _META),
    # ChatML, with line ends in its texts or as escapes
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": ("chatml", {}),
    "fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e": ("chatml", {}),
    # Zephyr and TinyLlama, likewise
    "66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362": ("zephyr", _ZEPHYR),
    "4f39e3a4b9e3d369b42fd00d93a78f171914bb4e58ec84fc420433d7a153288a": ("zephyr", _ZEPHYR),
    # Llama 3, likewise
    "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": ("llama3", _LLAMA_3),
    "4f46ecd43418f216df8c26936c60e5d04bcc81db47db5d86fbe889f64212dd4c": ("llama3", _LLAMA_3),
    # Mistral: version 1 with a system message, and version 3
    "796853172235ab3aaa4810013ddfe2eab481bda3306dad4f700c00d436eed596": ("mistral", _META),
    "e16746b40344d6c5b5265988e0328a0bf7277be86f1c335156eae07e29c82826": ("mistral", _META),
}
"""Templates by the SHA-256 of a text, with the tokens that they write where it names them."""


def find_published(text: str, tokens: Mapping[str, str]) -> str | None:
    """Return the template that writes what ``text`` does; None if none is known to.

    Args:
        text: a template text.
        tokens: the tokens that it names, such as ``bos_token``.
    """
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    name, named = PUBLISHED.get(digest, (None, {}))
    return name if named.items() <= tokens.items() else None
