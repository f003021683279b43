"""Memory, communication and speed of a model on several ranks, from its headers alone."""

from dataclasses import asdict, dataclass, replace

from llama_chat.checkpoints.sharded import ShardedCheckpoint, grain_of
from llama_chat.generation.measuring import read_bandwidth
from llama_chat.loading.load_plan import SPARE_BYTES, LoadPlan
from llama_chat.loading.weights import bytes_by_layer, device_of
from llama_chat.parallel.slices import Shard, shards

_LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes that one rank needs."""

    rank: int
    heads: int
    kv_heads: int
    weights: int
    cache: int
    """Keys and values of all sequences, in the whole context."""
    buffers: int
    """Rotary tables, and working memory of torch."""
    fits: bool

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.buffers


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that rank 0 sends and receives, whichever is more; it has the most."""

    per_token: int
    """For a token that is generated: two sums per layer, one for the embedding, and the logits."""
    per_prompt_token: int
    """For a token of a prompt, which needs no logits."""
    collectives: int
    """Collectives of a pass, each of which also waits for the slowest rank."""


def traffic(planned: LoadPlan, size: int) -> Traffic:
    """Compute what the ranks exchange.

    A ring all-reduce sends and receives each number ``2 (size - 1) / size`` times.
    """
    config = planned.config
    number = 4 if planned.types.keeps_stored else planned.types.dtype.itemsize
    n_sums = 2 * config.n_layers + 1
    sums = n_sums * 2 * (size - 1) * config.dim * number // size
    logits = (size - 1) * config.vocab_size * _LOGIT_BYTES // size
    return Traffic(sums + logits, sums, n_sums + 1)


def memory_of(planned: LoadPlan, shard: Shard, n_sequences: int, available: int) -> RankMemory:
    """Compute the memory of one rank, of ``available`` bytes."""
    part, context = replace(planned, shard=shard), planned.config.context_length
    needed = RankMemory(
        shard.rank,
        len(shard.heads),
        len(shard.kv_heads),
        part.weight_bytes,
        n_sequences * part.cache_bytes(context),
        SPARE_BYTES + planned.config.rotary_bytes(context),
        fits=True,
    )
    return replace(needed, fits=needed.total <= available)


def _read_bytes(planned: LoadPlan, shard: Shard) -> int:
    """Compute the bytes that a rank reads for a token at the end of the context."""
    part = replace(planned, shard=shard)
    checkpoint = ShardedCheckpoint(planned.checkpoint, shard)
    layers, (embedding, output) = bytes_by_layer(checkpoint, planned.weight_format, planned.types)
    matrix = embedding if planned.config.tie_embeddings else output
    return sum(layers) + matrix + part.cache_bytes(planned.config.context_length)


def describe_ranks(
    planned: LoadPlan,
    size: int,
    n_sequences: int,
    *,
    available: int | None = None,
    bandwidth: float | None = None,
    interconnect: float | None = None,
) -> dict[str, object]:
    """Describe a model on ``size`` ranks as a JSON object.

    Args:
        planned: plan of the model on one.
        size: number of ranks.
        n_sequences: sequences whose keys and values are kept at a time.
        available: bytes of memory of each rank; None for those free here.
        bandwidth: bytes per second that a rank reads; None to measure it here.
        interconnect: bytes per second between ranks; None to leave that time out.

    Raises:
        UsageError: if the model cannot be divided so; the message says which numbers of ranks can.
    """
    parts = shards(planned.config, size, grain_of(planned.checkpoint, planned.weight_format))
    available = planned.bytes_free if available is None else available
    bandwidth = read_bandwidth(planned.devices[0]) if bandwidth is None else bandwidth
    exchanged = traffic(planned, size)
    read_s = max(_read_bytes(planned, shard) for shard in parts) / bandwidth
    sent_s = exchanged.per_token / interconnect if interconnect else 0.0
    needed = [memory_of(planned, shard, n_sequences, available) for shard in parts]
    return {
        "world_size": size,
        "context": planned.config.context_length,
        "parallel": n_sequences,
        "memory_of_a_rank": available,
        "ranks": [{**asdict(each), "total": each.total} for each in needed],
        "fits": all(each.fits for each in needed),
        "bytes_per_token": exchanged.per_token,
        "bytes_per_prompt_token": exchanged.per_prompt_token,
        "collectives_per_pass": exchanged.collectives,
        "bandwidth_gb_s": round(bandwidth / 1e9, 3),
        "interconnect_gb_s": interconnect and round(interconnect / 1e9, 3),
        "most_tokens_per_s": round(1 / (read_s + sent_s), 2),
        "most_prompt_tokens_per_s": interconnect
        and round(interconnect / max(exchanged.per_prompt_token, 1), 1),
    }


def describe_map(planned: LoadPlan) -> list[dict[str, object]]:
    """Describe the device of each run of layers, with the bytes of their weights."""
    layers, ends = bytes_by_layer(planned.checkpoint, planned.weight_format, planned.types)
    layers[0] += ends[0]
    layers[-1] += ends[1]
    n_layers = len(layers)
    names = (f"layers.{i}." for i in range(n_layers))
    devices = [device_of(name, n_layers, planned.devices) for name in names]
    runs: list[dict[str, object]] = []
    for device in dict.fromkeys(devices):
        numbers = [i for i, each in enumerate(devices) if each == device]
        runs.append(
            {
                "device": str(device),
                "first_layer": numbers[0],
                "last_layer": numbers[-1],
                "weights": sum(layers[i] for i in numbers),
            }
        )
    return runs
