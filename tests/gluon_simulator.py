"""Runs the Gluon kernels of experimental/forward_hopper.py on the CPU: their source, with this file in place of Gluon.

Each warp group is a thread. One runs at a time, in an order drawn from a seed, which also decides when TMA copies land.
mbarriers have phases, arrival counts and pending bytes as the PTX manual defines them. Every access to shared memory
carries a vector clock, so a race (two accesses that no barrier orders) is found in every order, not only when it does
harm. Also found: deadlocks, accumulators read while a product is under way, writes that a product reads without a proxy
fence in between, and copies that nobody waited for.

Not modeled: the threads inside a warp group (Triton puts its own barriers there), layouts and registers.
"""

import ast
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product as all_of
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from stm_fast.kernels.experimental import forward_hopper
from stm_fast.kernels.experimental.forward_hopper import GluonLaunch

SOURCE = Path(forward_hopper.__file__).read_text()


class ScheduleError(AssertionError):
    """A schedule that a GPU could not run, or not always correctly."""


def simulate(launch: GluonLaunch, seed: int, source: str = SOURCE) -> None:
    """Runs every program of a launch on CPU tensors, each with its own order of threads."""
    for place, indices in enumerate(all_of(*map(range, launch.grid))):
        run_program(launch, indices, random.Random(seed * 1000 + place), source)


def run_program(launch: GluonLaunch, indices: tuple[int, ...], order: random.Random, source: str = SOURCE) -> None:
    program = Program(indices, order)
    functions = load_functions(source, program)
    arguments = {name: simulated(argument) for name, argument in launch.arguments.items()}
    with np.errstate(all="ignore"):
        functions[launch.kernel.__name__](**arguments)
    program.check_end()


def load_functions(source: str, program: "Program") -> dict[str, object]:
    """The jitted functions of a module, as plain functions."""
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    for function in functions:
        assert [ast.unparse(decorator) for decorator in function.decorator_list] == ["gluon.jit"]
        function.decorator_list = []
    names = dict(program.names())
    exec(compile(ast.Module(functions, []), "forward_hopper.py", "exec"), names)
    return names


def simulated(argument: object) -> object:
    """The simulator's form of an argument of a launch."""
    if isinstance(argument, torch.Tensor):
        return Pointer(argument.detach().numpy().reshape(-1))
    if hasattr(argument, "block_shape"):
        matrix = torch.as_strided(argument.base, argument.shape, argument.strides).numpy()
        return SimpleNamespace(matrix=matrix, dtype=matrix.dtype, layout=None)
    return argument


class Tile(np.ndarray):
    """A tensor in registers."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype: np.dtype) -> "Tile":
        return self.astype(dtype)


def tile(array: np.ndarray) -> Tile:
    return np.asarray(array).view(Tile)


class Integer(int):
    """A scalar whose type a kernel may change."""

    def to(self, _dtype: object) -> int:
        return int(self)


@dataclass
class Pointer:
    """An address, or a tensor of addresses, in a flat array."""

    array: np.ndarray
    offset: np.ndarray | int = 0

    @property
    def dtype(self) -> SimpleNamespace:
        return SimpleNamespace(element_ty=self.array.dtype)

    def __add__(self, offset: np.ndarray | int) -> "Pointer":
        return Pointer(self.array, self.offset + offset)


Clock = dict[int, int]


def join(clock: Clock, other: Clock) -> None:
    for agent, tick in other.items():
        clock[agent] = max(clock.get(agent, 0), tick)


@dataclass
class Access:
    agent: int
    tick: int
    fenced: bool  # visible to TMA and wgmma

    def before(self, clock: Clock) -> bool:
        return clock.get(self.agent, 0) >= self.tick


@dataclass
class Slot:
    """One tile of shared memory, and who touched it last."""

    name: str
    write: Access | None = None
    reads: list[Access] = field(default_factory=list)

    def check_read(self, clock: Clock, by_proxy: bool) -> None:
        if self.write and not self.write.before(clock):
            raise ScheduleError(f"race: {self.name} is read while it may be written")
        if self.write and by_proxy and not self.write.fenced:
            raise ScheduleError(f"no fence between a store to {self.name} and its use by wgmma")

    def check_write(self, clock: Clock, by_proxy: bool) -> None:
        self.check_read(clock, by_proxy)
        if not all(read.before(clock) for read in self.reads):
            raise ScheduleError(f"race: {self.name} is overwritten while it may be read")


@dataclass
class Barrier:
    """An mbarrier."""

    name: str
    count: int = 0
    pending: int = 0
    pending_bytes: int = 0
    phase: int = 0
    arrived: Clock = field(default_factory=dict)
    released: Clock = field(default_factory=dict)

    def has_completed(self, parity: int) -> bool:
        """Whether the last completed phase has this parity; before the first one it is 1."""
        return self.phase & 1 != parity

    def update(self, clock: Clock, arrivals: int, nbytes: int) -> None:
        self.pending -= arrivals
        self.pending_bytes += nbytes
        join(self.arrived, clock)
        if self.pending < 0:
            raise ScheduleError(f"{self.name}: more arrivals in a phase than the {self.count} it counts")
        if self.pending == 0 and self.pending_bytes == 0:
            self.released, self.arrived = self.arrived, {}
            self.pending, self.phase = self.count, self.phase + 1


@dataclass
class View:
    """A descriptor of shared memory: a buffer, one of its tiles, or a part of one."""

    slots: list[Slot]
    array: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def index(self, i: int) -> "View":
        return View([self.slots[i]], self.array[i])

    def permute(self, order: tuple[int, int]) -> "View":
        return View(self.slots, self.array.transpose(order))

    def slice(self, first: int, length: int) -> "View":
        return View(self.slots, self.array[first : first + length])


@dataclass
class Product:
    """A wgmma and its accumulator, which may be read only after a wait."""

    result: np.ndarray
    clock: Clock
    done: bool = False


@dataclass
class Agent:
    """A warp group."""

    number: int
    clock: Clock
    ready: Callable[[], bool] = lambda: True
    waits_for: str = ""
    products: list[Product] = field(default_factory=list)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    finished: bool = False
    error: BaseException | None = None


class Stop(BaseException):
    """Ends the other threads of a program after one failed."""


class Program:
    """One program of a grid."""

    def __init__(self, indices: tuple[int, ...], order: random.Random) -> None:
        self.indices, self.order = indices, order
        self.slots: list[Slot] = []
        self.barriers: list[Barrier] = []
        self.copies: list[tuple[int, Callable[[], None]]] = []
        self.agents = [Agent(0, {0: 1})]
        self.current = self.agents[0]
        self.last_number = 0
        self.back = threading.Semaphore(0)
        self.stopped = False
        # how eagerly the warp groups run and the copies land
        self.eagerness = [10 ** order.uniform(-2, 2) for _ in range(4)]

    def names(self) -> Iterator[tuple[str, object]]:
        """The names that the kernels import."""
        yield "gl", Language(self)
        yield "mbarrier", Mbarrier(self)
        yield "tma", SimpleNamespace(async_copy_global_to_shared=self.copy)
        yield "warpgroup_mma", self.multiply
        yield "warpgroup_mma_wait", self.wait_for_products
        yield "fence_async_shared", self.fence

    def new_number(self) -> int:
        self.last_number += 1
        return self.last_number

    # ------------------------------------------------------------------------------------------ scheduling

    def specialize(self, partitions: list[tuple[Callable[..., None], tuple[object, ...]]]) -> None:
        clock = self.current.clock
        self.agents = [Agent(self.new_number(), dict(clock)) for _ in partitions]
        for agent in self.agents:
            agent.clock[agent.number] = 1
        threads = [
            threading.Thread(target=self._run_agent, args=(agent, *partition), daemon=True)
            for agent, partition in zip(self.agents, partitions, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            while not all(agent.finished for agent in self.agents):
                self._step()
        finally:
            self.stopped = True
            for agent, thread in zip(self.agents, threads, strict=True):
                agent.go.release()
                thread.join()

    def _step(self) -> None:
        ready = [agent for agent in self.agents if not agent.finished and agent.ready()]
        choices = [*ready, *self.copies]
        if not choices:
            waits = [agent.waits_for for agent in self.agents if not agent.finished]
            raise ScheduleError(f"deadlock: all wait, for {', '.join(waits)}")
        weights = [self.eagerness[self.agents.index(agent)] for agent in ready]
        weights += [self.eagerness[3]] * len(self.copies)
        (choice,) = self.order.choices(choices, weights)
        if isinstance(choice, tuple):
            self.copies.remove(choice)
            choice[1]()
            return
        self.current = choice
        choice.go.release()
        self.back.acquire()
        if choice.error is not None:
            raise choice.error

    def _run_agent(self, agent: Agent, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
        agent.go.acquire()
        try:
            if not self.stopped:
                with np.errstate(all="ignore"):
                    function(*arguments)
        except Stop:
            return
        except BaseException as error:
            agent.error = error
        agent.finished = True
        self.back.release()

    def pause(self, ready: Callable[[], bool], waits_for: str) -> None:
        """Lets others run until `ready`."""
        agent = self.current
        if threading.current_thread() is threading.main_thread():
            assert ready()
            return
        agent.ready, agent.waits_for = ready, waits_for
        self.back.release()
        agent.go.acquire()
        if self.stopped:
            raise Stop

    def check_end(self) -> None:
        seen: Clock = {}
        for agent in self.agents:
            join(seen, agent.clock)
            if any(not product.done for product in agent.products):
                raise ScheduleError("a program ends while a product is under way")
        for slot in self.slots:
            if slot.write and not slot.write.before(seen):
                raise ScheduleError(f"nobody waited for the copy to {slot.name}")
        if self.copies or any(barrier.pending_bytes for barrier in self.barriers):
            raise ScheduleError("a program ends while a copy is under way")

    # ------------------------------------------------------------------------------------------ shared memory

    def allocate(self, dtype: object, shape: list[int], _layout: object = None) -> View | list[Barrier]:
        number = len(self.slots) + len(self.barriers)
        if dtype is BARRIER:
            barriers = [Barrier(f"barrier {number}[{i}]") for i in range(shape[0])]
            self.barriers += barriers
            return Barriers(barriers)
        slots = [Slot(f"tile {number}[{i}] of {shape}") for i in range(shape[0])]
        self.slots += slots
        return View(slots, np.full(shape, np.nan, dtype))

    def access(self) -> Access:
        clock, number = self.current.clock, self.current.number
        clock[number] = clock.get(number, 0) + 1
        return Access(number, clock[number], fenced=False)

    def load(self, view: View) -> Tile:
        self.read(view, self.current.clock, self.access())
        return tile(view.array.copy())

    def store(self, view: View, numbers: np.ndarray) -> None:
        assert view.array.shape == numbers.shape
        assert view.array.dtype == numbers.dtype
        self.write(view, self.current.clock, self.access())
        view.array[...] = numbers

    def read(self, view: View, clock: Clock, access: Access) -> None:
        for slot in view.slots:
            slot.check_read(clock, access.fenced)
            slot.reads.append(access)

    def write(self, view: View, clock: Clock, access: Access) -> None:
        for slot in view.slots:
            slot.check_write(clock, access.fenced)
            slot.write, slot.reads = access, []

    def fence(self) -> None:
        for slot in self.slots:
            if slot.write and slot.write.agent == self.current.number:
                slot.write.fenced = True

    # ------------------------------------------------------------------------------------------ asynchronous work

    def copy(self, source, coordinates, barrier, target, pred=True) -> None:
        """TMA: elements outside the matrix are read as 0."""
        if not pred:
            return
        number = self.new_number()
        clock = {**self.current.clock, number: 1}

        def land() -> None:
            self.write(target, clock, Access(number, 1, fenced=True))
            first, column = coordinates
            height, width = target.array.shape
            part = source.matrix[first : first + height, column : column + width]
            target.array[...] = 0
            target.array[: part.shape[0], : part.shape[1]] = part
            barrier.one().update(clock, 0, -target.array.nbytes)

        self.copies.append((number, land))

    def multiply(self, a, b, accumulator, use_acc=True, is_async=False):
        number = self.new_number()
        clock = {**self.current.clock, number: 1}
        for view in (a, b):
            self.read(view, clock, Access(number, 1, fenced=True))
        before = accumulator.result if isinstance(accumulator, Product) else accumulator
        result = a.array.astype(np.float32) @ b.array.astype(np.float32)
        assert result.shape == before.shape
        product = Product(tile(result + before if use_acc else result), clock)
        self.current.products.append(product)
        return product if is_async else self.wait_for_products(0, [product])

    def wait_for_products(self, under_way, deps):
        products = self.current.products
        for finished in products[: len(products) - under_way]:
            finished.done = True
            join(self.current.clock, finished.clock)
        self.current.products = products[len(products) - under_way :]
        if not all(product.done for product in deps):
            raise ScheduleError("an accumulator is read while its product is under way")
        return deps[0].result if len(deps) == 1 else tuple(product.result for product in deps)


BARRIER = np.int64


class Barriers(list):
    """A buffer of mbarriers."""

    def index(self, i: int) -> "Barriers":
        return Barriers([self[i]])

    def one(self) -> Barrier:
        (barrier,) = self
        return barrier


class Mbarrier:
    """The names of gluon's mbarrier."""

    MBarrierLayout = staticmethod(lambda: None)

    def __init__(self, program: Program) -> None:
        self.program = program

    def init(self, barriers: Barriers, count: int) -> None:
        barrier = barriers.one()
        barrier.count = barrier.pending = count

    def expect(self, barriers: Barriers, nbytes: int, pred: bool = True) -> None:
        if pred:
            self._update(barriers.one(), 1, nbytes)

    def arrive(self, barriers: Barriers, count: int = 1, pred: bool = True) -> None:
        if pred:
            self._update(barriers.one(), count, 0)

    def wait(self, barriers: Barriers, parity: int, pred: bool = True) -> None:
        barrier = barriers.one()
        if not pred:
            return
        self.program.pause(lambda: barrier.has_completed(parity), f"{barrier.name} phase {parity}")
        join(self.program.current.clock, barrier.released)

    def _update(self, barrier: Barrier, arrivals: int, nbytes: int) -> None:
        barrier.update(self.program.current.clock, arrivals, nbytes)
        self.program.access()  # this arrival does not order later accesses
        self.program.pause(lambda: True, "")


class Language:
    """The names of gluon.language that the kernels use."""

    constexpr = None
    float32, int64 = np.float32, BARRIER
    minimum, maximum = staticmethod(np.minimum), staticmethod(np.maximum)
    static_range = staticmethod(range)
    NVMMASharedLayout = SimpleNamespace(get_default_for=lambda *_: None)

    def __init__(self, program: Program) -> None:
        self.program = program
        self.allocate_shared_memory = program.allocate
        View.load = lambda view, _layout: program.load(view)
        View.store = lambda view, numbers: program.store(view, numbers)

    NVMMADistributedLayout = SwizzledSharedLayout = SliceLayout = BlockedLayout = staticmethod(lambda *_: None)

    def program_id(self, axis: int) -> Integer:
        return Integer(self.program.indices[axis])

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def arange(self, first: int, last: int, _layout: object) -> Tile:
        return tile(np.arange(first, last))

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype, _layout: object) -> Tile:
        return tile(np.zeros(shape, dtype))

    def full(self, shape: tuple[int, ...], number: float, dtype: np.dtype, _layout: object) -> Tile:
        return tile(np.full(shape, number, dtype))

    def where(self, condition: np.ndarray, yes: np.ndarray | float, no: np.ndarray | float) -> Tile:
        dtype = next(a.dtype for a in (yes, no) if isinstance(a, np.ndarray))
        return tile(np.where(condition, yes, no).astype(dtype))

    def exp2(self, numbers: np.ndarray) -> Tile:
        return tile(np.exp2(numbers))

    def log2(self, numbers: np.ndarray) -> Tile:
        return tile(np.log2(numbers))

    def max(self, numbers: np.ndarray, axis: int) -> Tile:
        return tile(np.max(numbers, axis))

    def sum(self, numbers: np.ndarray, axis: int) -> Tile:
        return tile(np.sum(numbers, axis))

    def convert_layout(self, numbers: Tile, _layout: object) -> Tile:
        return numbers

    def load(self, pointer: Pointer) -> int:
        return int(pointer.array[pointer.offset])

    def store(self, pointer: Pointer, numbers: np.ndarray, mask: np.ndarray) -> None:
        mask = np.broadcast_to(mask, numbers.shape)
        offsets = np.broadcast_to(pointer.offset, numbers.shape)[mask]
        assert (offsets >= 0).all()
        assert np.isnan(pointer.array[offsets]).all(), "an output is written twice"
        pointer.array[offsets] = numbers[mask]

    def warp_specialize(self, partitions: list, warps: list[int], registers: list[int]) -> None:
        assert len(warps) == len(registers) == len(partitions) - 1
        self.program.specialize(partitions)
