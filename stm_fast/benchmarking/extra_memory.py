"""How much memory a pass takes beyond its inputs and results.

On a GPU the allocator knows. On a CPU it is the peak resident size of a fresh process, forked for this one pass from a
process that has imported PyTorch and computed nothing.
"""

from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from stm_fast.benchmarking.inputs import Inputs, in_layout, make_inputs
from stm_fast.benchmarking.resident import CLEAR, PeakMemory, map_large_blocks
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.timing import Call, Results, make_call
from stm_fast.benchmarking.workload import Workload

_SECONDS_AT_MOST = 300.0


def extra_cuda_bytes(call: Call, inputs: Inputs) -> int:
    """The most that one call allocates on the GPU beyond inputs and results."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call.timed(call.before(inputs))
    return torch.cuda.max_memory_allocated() - before - _nbytes(results)


def extra_cpu_bytes(route: str, workload: Workload) -> int | None:
    """The same of the CPU; None where the system does not tell or the process does not end well."""
    if not CLEAR.exists():
        return None
    processes = get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send_extra_bytes, args=(sender, route, workload, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        found: int | None = receiver.recv() if receiver.poll(_SECONDS_AT_MOST) else None
    except EOFError:  # it ended without an answer, out of memory perhaps
        found = None
    finally:
        receiver.close()
        process.kill()
        process.join()
    return found


def _send_extra_bytes(sender: Connection, route: str, workload: Workload, threads: int) -> None:
    torch.set_num_threads(threads)
    map_large_blocks()
    sender.send(_measure(route, workload))


def _measure(name: str, workload: Workload) -> int:
    route = ROUTES[name]
    read = route.build(workload)
    assert not isinstance(read, str)
    call = make_call(workload.pass_name, read)
    inputs = in_layout(make_inputs(workload.shape, workload.dtype, "cpu", seed=0), route.layout)
    call.timed(call.before(inputs))  # compiles, and loads what stays loaded
    with PeakMemory("cpu") as memory:
        results = call.timed(call.before(inputs))
    return max(0, memory.bytes - _nbytes(results))


def _nbytes(results: Results) -> int:
    return sum(result.nbytes for result in results)
