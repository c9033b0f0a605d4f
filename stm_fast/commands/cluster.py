"""Options of commands that can run on a Ray cluster."""

from typing import Annotated

from stm_fast.cluster.choice import AUTO, ClusterChoice, host_and_port, is_address
from stm_fast.commands.numbers import real, whole
from stm_fast.commands.options import speed_option
from stm_fast.errors import InputError

_RAY = "--ray"
_MOST_WORKERS = 100_000


def cluster_choice(
    ray: Annotated[
        str | None,
        speed_option(
            _RAY,
            metavar="[ADDRESS]",
            help="The work is shared out among the workers of a Ray cluster: the one at this address (host:port), or "
            "else the one that RAY_ADDRESS names or that runs here, or else one that is started on this machine.",
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        speed_option(
            **whole(1, _MOST_WORKERS),
            help="With --ray, this many workers are used, each with a network of its own; by default, as many as there "
            "is room for.",
        ),
    ] = None,
    ray_cpus: Annotated[
        float, speed_option(**real(0.01, 4096), help="With --ray, each worker takes this many CPU cores.")
    ] = 1,
    ray_gpus: Annotated[
        float | None,
        speed_option(
            **real(0, 64),
            help="With --ray, each worker takes this many GPUs, such as 0.5; by default one, if the cluster has some.",
        ),
    ] = None,
) -> ClusterChoice | None:
    """The options as a choice; None without --ray. Raises InputError for an invalid address."""
    if ray is None:
        given = {
            "--ray-workers": ray_workers,
            "--ray-gpus": ray_gpus,
            "--ray-cpus": ray_cpus if ray_cpus != 1 else None,
        }
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name}: found {value:g} without --ray")
        return None
    host_and_port(ray)
    return ClusterChoice(ray, ray_workers, ray_cpus, ray_gpus)


Cluster = Annotated[ClusterChoice | None, cluster_choice]


def refuse_torchrun(world: int) -> None:
    """Raises InputError if torchrun has started several processes, each of which would use a cluster."""
    if world > 1:
        raise InputError(f"{_RAY}: found {world} processes that torchrun started, expected one")


def with_address(arguments: list[str]) -> list[str]:
    """The arguments of a command, in which an address follows every --ray: the next argument, if it is one."""
    given: list[str] = []
    for at, argument in enumerate(arguments):
        if given[-1:] == [_RAY] and not is_address(argument):
            given.append(AUTO)
        if argument == "--":
            return [*given, *arguments[at:]]
        given.append(argument)
    return [*given, AUTO] if given[-1:] == [_RAY] else given
