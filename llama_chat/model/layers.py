"""Layers whose weights always come from a checkpoint."""

from torch import nn


class Linear(nn.Linear):
    """A projection without bias, left uninitialised: ``(…, in)`` to ``(…, out)``.

    Random initialisation would be thrown away. On the meta device it would also import half of
    torch's compiler, for most of a second.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class Embedding(nn.Embedding):
    """A table of vectors, left uninitialised: ids ``(…)`` to ``(…, dim)``."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""
