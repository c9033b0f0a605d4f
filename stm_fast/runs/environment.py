"""What results depend on besides files and options, for their records."""

import platform

import torch

from stm_fast.network.deploy.precision import cpu_instructions
from stm_fast.versions import version_of


def environment(device: torch.device | None) -> dict[str, str]:
    """Versions, machine and device."""
    packages = ("stm_fast", "torch", "torchvision", "triton", "numpy", "pillow", "av")
    found = {package: version_of(package) or "not installed" for package in packages}
    found["python"] = platform.python_version()
    found["machine"] = f"{platform.system()} {platform.machine()}, {cpu_instructions()}"
    if device is not None:
        cuda = device.type == "cuda"
        found["device"] = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    return found
