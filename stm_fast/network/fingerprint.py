"""A hash of a network's weights."""

import hashlib

import torch

from stm_fast.network.stm import STM


def fingerprint(model: STM) -> str:
    """SHA-256 of the names and bytes of a network's state, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
