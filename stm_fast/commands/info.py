"""stm-fast info: what this machine has."""

import stm_fast.tasks as tasks


def info() -> None:
    """Print versions, devices and every backend of the memory read, with why it is absent where it is."""
    tasks.print_info()
