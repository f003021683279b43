"""Description of the chat template in a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """Chat templates of a checkpoint, and the hints for a guess if it has none."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """Template texts by name; most checkpoints have ``default`` alone."""
    where: str = ""
    """File or metadata key of the default, or else of the others."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Tokens that a template may name, such as ``bos_token``, as the checkpoint names them."""
    names: tuple[str, ...] = ()
    """Names of the model: of its file or folder, and in its metadata."""
    is_meta: bool = False
    """True for files in Meta's layout, which never contain a template."""

    @property
    def stored(self) -> str | list[dict[str, str]] | None:
        """The texts as model files store them: a text, or a list of named ones; None if none."""
        if self.texts.keys() <= {DEFAULT}:
            return self.texts.get(DEFAULT)
        return [{"name": name, "template": text} for name, text in self.texts.items()]
