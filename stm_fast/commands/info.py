"""stm-fast info: what is installed."""


def info() -> None:
    """Print versions, devices, and the backends of the memory read, with the reasons why one is unavailable."""
    from stm_fast.tasks.info import print_info

    print_info()
