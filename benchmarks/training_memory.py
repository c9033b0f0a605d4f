"""What a memory read keeps for its backward pass: the fused one beside the published matrix products.

python benchmarks/training_memory.py      counts tensors: the same on every machine
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from stm_fast.benchmarking.published import published
from stm_fast.ops import memory_read

MEBI = 2**20
KEY_DIM, VALUE_DIM, STRIDE = 128, 512, 16
# height, width, frames in memory, objects: the last frame of the paper's training clips, then larger and longer ones
CLIPS = ((384, 384, 2, 3), (480, 864, 2, 3), (480, 864, 7, 3))


def kept_bytes(read: Callable[[Tensor, Tensor, Tensor], Tensor], *inputs: Tensor) -> int:
    """Bytes of the storages that a read keeps until its backward pass, those of its inputs left out."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = read(*inputs)
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept = sum(storage.nbytes() for place, storage in storages.items() if place not in own)
    out.sum().backward()  # what is kept must be enough
    return kept


def main() -> None:
    fused = partial(memory_read, backend="cpp")
    print(f"{'clip':>24}  {'published':>12}  {'fused':>12}")
    for height, width, frames, objects in CLIPS:
        pixels = (height // STRIDE) * (width // STRIDE)
        shapes = ((objects, pixels, KEY_DIM), *((objects, frames * pixels, dim) for dim in (KEY_DIM, VALUE_DIM)))
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]  # query, key, value
        megabytes = (f"{kept_bytes(read, *inputs) / MEBI:8.1f} MiB" for read in (published, fused))
        print(f"{f'{width}x{height}, T={frames}, O={objects}':>24}", *megabytes, sep="  ")


if __name__ == "__main__":
    main()
