"""Division of a model among ranks: the slices of each weight that a rank holds.

Tensor parallelism of Megatron-LM (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053): the rows
of wq, wk, wv, w1 and w3 are divided, and with them the heads of the KV cache; and the columns of wo
and w2, whose products are summed over the ranks. Embedding and output are divided by rows. Parts
need not be equal: the first ones are the largest.
"""

import math
from dataclasses import dataclass, replace

from llama_chat.errors import UsageError, counted
from llama_chat.model.config import LlamaConfig


@dataclass(frozen=True, slots=True)
class Slice:
    """Neighbouring rows (``dim`` 0) or columns (``dim`` 1) of a matrix."""

    dim: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the slice of a matrix ``whole``."""
        return tuple(len(self) if i == self.dim else size for i, size in enumerate(whole))


def divide(n: int, size: int, unit: int = 1) -> list[range]:
    """Divide ``n`` neighbours in ``size`` parts that begin at multiples of ``unit``."""
    n_units = -(-n // unit)
    bounds = [min(-(-part * n_units // size) * unit, n) for part in range(size + 1)]
    return [range(*bounds[part : part + 2]) for part in range(size)]


@dataclass(frozen=True, slots=True)
class Grain:
    """Least numbers of neighbouring columns that stay together, since they share a scale."""

    wo: int = 1
    w2: int = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a model that one rank holds."""

    rank: int
    size: int
    """Number of ranks."""
    head_dim: int
    heads: range
    """Heads of the queries."""
    kv_heads: range
    """Heads of keys and values that these attend to; several ranks may hold the same one."""
    hidden: range
    """Numbers between w1 and w2."""
    vocab: range
    """Tokens whose rows of embedding and output it holds."""

    def local(self, config: LlamaConfig) -> LlamaConfig:
        """Return the hyperparameters of the part of a model of ``config``."""
        return replace(
            config,
            n_heads=len(self.heads),
            n_kv_heads=len(self.kv_heads),
            hidden_dim=len(self.hidden),
            vocab_size=len(self.vocab),
        )

    def slice_of(self, name: str) -> Slice | None:
        """Return the slice of the weight that Meta calls ``name``; None if the rank holds all."""
        part = name.removesuffix(".weight").rpartition(".")[2]
        match part:
            case "wq":
                return self._of_heads(0, self.heads)
            case "wk" | "wv":
                return self._of_heads(0, self.kv_heads)
            case "wo":
                return self._of_heads(1, self.heads)
            case "w1" | "w3":
                return Slice(0, self.hidden.start, self.hidden.stop)
            case "w2":
                return Slice(1, self.hidden.start, self.hidden.stop)
            case "tok_embeddings" | "output":
                return Slice(0, self.vocab.start, self.vocab.stop)
        return None

    def _of_heads(self, dim: int, heads: range) -> Slice:
        return Slice(dim, heads.start * self.head_dim, heads.stop * self.head_dim)


def shards(config: LlamaConfig, size: int, grain: Grain = Grain()) -> list[Shard]:
    """Divide a model among ``size`` ranks.

    Raises:
        UsageError: if it cannot be; the message names the numbers of ranks that would do.
    """
    heads = _divide_heads(config, size, grain.wo)
    if heads is None or not is_divisible(config, size, grain):
        raise _indivisible(config, size, grain)
    hidden = divide(config.hidden_dim, size, grain.w2)
    vocab = divide(config.vocab_size, size)
    return [
        Shard(rank, size, config.head_dim, *heads[rank], hidden[rank], vocab[rank])
        for rank in range(size)
    ]


def _divide_heads(config: LlamaConfig, size: int, grain: int) -> list[tuple[range, range]] | None:
    """Divide the heads, so that all query heads of a rank are in groups of one size.

    Up to as many ranks as KV heads have whole groups; more ranks share the query heads of a group,
    and each of them has its KV head.

    Returns:
        The query heads and the KV heads of each rank; None if there are too few.
    """
    group = config.n_heads // config.n_kv_heads
    unit = math.lcm(config.head_dim, grain) // config.head_dim  # query heads that stay together
    if size <= config.n_kv_heads:
        kv_heads = divide(config.n_kv_heads, size, unit // math.gcd(unit, group))
        found = [(range(kv.start * group, kv.stop * group), kv) for kv in kv_heads]
    else:
        if group % unit:
            return None
        found = []
        for kv, sharing in enumerate(divide(size, config.n_kv_heads)):
            for part in divide(group, len(sharing), unit):
                heads = range(kv * group + part.start, kv * group + part.stop)
                found.append((heads, range(kv, kv + 1)))
    return found if all(heads for heads, _ in found) else None


def _indivisible(config: LlamaConfig, size: int, grain: Grain) -> UsageError:
    possible = [n for n in range(1, config.n_heads + 1) if is_divisible(config, n, grain)]
    wo, w2 = (f" in groups of {n}" if n > 1 else "" for n in (grain.wo, grain.w2))
    why = (
        f"{counted(config.n_heads, 'head')} of {config.head_dim} columns{wo} with "
        f"{config.n_kv_heads} of keys and values, and {config.hidden_dim} hidden columns{w2}, "
        f"have no {size} parts"
    )
    return UsageError(f"{size} ranks", why, f"use {_shown(possible)}")


def is_divisible(config: LlamaConfig, size: int, grain: Grain) -> bool:
    """True if a model can be divided among ``size`` ranks."""
    return (
        _divide_heads(config, size, grain.wo) is not None
        and all(divide(config.hidden_dim, size, grain.w2))
        and config.vocab_size >= size
    )


def _shown(sizes: list[int]) -> str:
    """Show sorted numbers, with runs of neighbours as ``1 to 9``."""
    runs: list[list[int]] = []
    for n in sizes:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    shown = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return " or ".join(shown)
