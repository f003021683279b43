"""Devices and float types that torch supports on this machine."""

import platform
from collections.abc import Sequence

import torch

from llama_chat.checkpoints.base import FLOAT_TYPES
from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.errors import UsageError
from llama_chat.memory import available_memory
from llama_chat.parallel.world import World

_CPU = torch.device("cpu")

# Values of ``--dtype``, besides auto.
DTYPES = {name: FLOAT_TYPES[stored] for stored, name in FLOATS.items()}


def pick_devices(wanted: str, world: World | None = None) -> tuple[torch.device, ...]:
    """Find the devices that ``--device`` names; of one of several ranks, its own.

    Raises:
        UsageError: if one of them is not available.
    """
    if world is not None:
        return (_device_of_rank(wanted, world),)
    if wanted == "auto":
        if torch.cuda.is_available():
            return (torch.device("cuda", 0),)
        return (torch.device("mps" if torch.backends.mps.is_available() else "cpu"),)
    return tuple(_pick_device(name.strip()) for name in wanted.split(","))


def _device_of_rank(wanted: str, world: World) -> torch.device:
    """Return the device of a rank: the GPU of its number on this machine, or the CPU."""
    if wanted not in ("auto", "cpu", "cuda"):
        why = "torchrun gives each rank a device of its own"
        raise UsageError(f"--device {wanted[:40]!r}", why, "give auto, cpu or cuda")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    n_gpus = torch.cuda.device_count()
    if world.local_size > n_gpus:
        what = f"{world.local_size} ranks on this machine"
        raise UsageError(what, f"it has {n_gpus} GPUs", "start one rank for each GPU")
    return torch.device("cuda", world.local_rank)


def _pick_device(name: str) -> torch.device:
    what = f"--device {name[:40]!r}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(what, "no such device", "give auto, cpu, cuda or mps") from None
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= available:
        raise UsageError(what, "this machine has none", "give auto or cpu")
    return device


def free_memory(
    devices: Sequence[torch.device],
    limit: int | None = None,
    world: World | None = None,
    reclaimable: int = 0,
) -> int:
    """Return the free bytes of the GPUs among ``devices``, or if there are none, of this process.

    The ranks of a machine share its memory equally. See ``available_memory`` for ``limit`` and
    ``reclaimable``.
    """
    gpus = {device for device in devices if device.type == "cuda"}
    if not gpus:
        share = available_memory() // (1 if world is None else world.local_size)
        return min(share + reclaimable, available_memory(limit=limit, reclaimable=reclaimable))
    return sum(map(free_bytes, gpus | ({_CPU} & set(devices)))) + reclaimable


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of one device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def all_devices() -> tuple[torch.device, ...]:
    """Return the GPUs of this machine, and the CPU."""
    return (*(torch.device("cuda", i) for i in range(torch.cuda.device_count())), _CPU)


def map_layers(
    layers: Sequence[int], ends: tuple[int, int], free: Sequence[tuple[torch.device, int]]
) -> tuple[torch.device, ...]:
    """Choose the device of each layer: the first devices that have room, as few as possible.

    Devices compute one after the other, so more of them would not be faster.

    Args:
        layers: bytes of each layer.
        ends: bytes of the embedding, which is with the first layer, and of the output, which is
            with the last.
        free: the devices with their free bytes; the last one takes what fits nowhere else.
    """
    sizes = list(layers)
    sizes[0] += ends[0]
    sizes[-1] += ends[1]
    rest = list(free)
    found = []
    for size in sizes:
        while len(rest) > 1 and size > rest[0][1]:
            del rest[0]
        device, room = rest[0]
        rest[0] = device, room - size
        found.append(device)
    return tuple(found)


def pick_dtype(
    wanted: str, stored: torch.dtype | None, device: torch.device, *, keeps_stored: bool = False
) -> torch.dtype:
    """Choose the type of the weights in memory.

    ``auto`` keeps float32 as stored, and with ``keeps_stored`` all types. Everything else becomes
    bfloat16 if the device has instructions for it, else float16 on a GPU and float32 on a CPU.

    Raises:
        UsageError: if the device cannot compute in ``wanted``.
    """
    if device.type == "cuda":
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        bfloat16 = _computes_bfloat16()
    else:
        bfloat16 = True
    if wanted != "auto":
        if wanted == "bfloat16" and not bfloat16 and device.type == "cuda":
            raise UsageError("--dtype bfloat16", "this GPU has none", "give float16")
        return DTYPES[wanted]
    if stored is not None and (keeps_stored or stored == torch.float32):
        return stored
    if bfloat16:
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else torch.float16


def _computes_bfloat16() -> bool:
    """True if this processor multiplies bfloat16; any other takes longer than for float32.

    oneDNN says of x86 that it can where it has to convert each number.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
