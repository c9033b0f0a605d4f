"""stm-fast info: versions, devices and backends."""

import platform

import torch

from stm_fast.network.deploy.precision import cpu_instructions
from stm_fast.network.released import ARCHITECTURE, FILES
from stm_fast.ops.backends import BACKENDS
from stm_fast.printing import say
from stm_fast.versions import version_of


def print_info() -> None:
    """Prints one line for each."""
    for package in ("stm_fast", "torch", "torchvision", "triton", "numpy", "av"):
        say(f"{package:12} {version_of(package) or 'not installed'}")
    say(f"{'python':12} {platform.python_version()} on {platform.system()} {platform.machine()}")
    say(f"{'cpu':12} {torch.get_num_threads()} threads, {cpu_instructions()}")
    if not torch.cuda.is_available():
        say(f"{'cuda':12} no device")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        say(f"{f'cuda:{index}':12} {properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB")
    say(f"{'weights':12} {', '.join(FILES)}: {ARCHITECTURE}")
    for backend in BACKENDS:
        say(f"{backend.name:12} {'; '.join(backend.absent_reasons()) or 'ready'}")
