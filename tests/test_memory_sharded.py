"""A sharded bank: equal to a single process, and a one-line error if a process is lost."""

import os
import signal
import time
from dataclasses import replace
from datetime import timedelta
from itertools import chain

import pytest
import torch
import torch.distributed as dist

from processes import CONTEXT
from stm_fast.config import MemoryConfig
from stm_fast.memory import MemoryBank, RankLostError, Shard

CK, CV, H, W = 8, 12, 3, 4
PIXELS = H * W
SLOT_BYTES = 4 * PIXELS * (CK + CV)
POLICIES = {
    "everything": MemoryConfig(),
    "oldest": MemoryConfig(max_frames=5),
    "even": MemoryConfig(max_frames=5, evict="even"),
    "least_used": MemoryConfig(max_frames=5, evict="least_used"),
    "consolidated": MemoryConfig(max_frames=6, consolidate=2),
    "consolidated pages": MemoryConfig(
        max_frames=6, consolidate=3, place="host", page_bytes=SLOT_BYTES, storage="int8"
    ),
    "consolidated bytes": MemoryConfig(max_bytes=6 * SLOT_BYTES, consolidate=3),
    "pages": MemoryConfig(place="host", page_bytes=2 * SLOT_BYTES),
    "int8": MemoryConfig(storage="int8"),
    # two ranks hold 11 frames of one object or 3 of each of three: remaining frames move to the other rank
    "bytes": MemoryConfig(max_bytes=6 * SLOT_BYTES),
    "bytes of pages": MemoryConfig(place="host", page_bytes=SLOT_BYTES, max_bytes=6 * SLOT_BYTES),
}
TIMEOUT_SECONDS = 30


def run(bank):
    """A video with objects that appear and disappear: the read after every frame, and the frames in the bank."""
    generator = torch.Generator().manual_seed(0)
    reads = []
    for number in range(20):
        objects = 1 if number < 7 else 3
        sizes = ((objects, CK, H, W), (objects, CV, H, W), (1, CK, H, W))
        key, value, query_key = (torch.randn(size, generator=generator) for size in sizes)
        if number == 10:
            bank.remove([1])
        bank.append(key, value, temporary=number % 3 == 2, permanent=[0] if number == 0 else [], frame=number)
        reads.append(bank.read(query_key))
    return reads, bank.frames, bank.rows


def start(rank, world, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    timeout = timedelta(seconds=TIMEOUT_SECONDS)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
    return Shard(dist.group.WORLD)


def launch(target, world, folder):
    """Runs `target(rank, world, folder)` in this many processes; returns their exit codes."""
    ranks = [CONTEXT.Process(target=target, args=(rank, world, str(folder))) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    return [process.exitcode for process in ranks]


def run_every_policy(rank, world, folder):
    shard = start(rank, world, folder)
    results = {}
    for name, config in POLICIES.items():
        bank = MemoryBank(config, shard=shard)
        results[name] = (*run(bank), bank.nbytes)
        other = MemoryBank(config, shard=shard)
        other.load_state_dict(bank.state_dict())
        query_key = torch.randn(1, CK, H, W, generator=torch.Generator().manual_seed(1))
        assert torch.equal(other.read(query_key), bank.read(query_key))
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_a_sharded_bank_matches_one_of_a_single_process(world, tmp_path):
    assert launch(run_every_policy, world, tmp_path) == [0] * world
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
    for name, config in POLICIES.items():
        alone = MemoryBank(config if config.max_bytes is None else replace(config, max_bytes=world * config.max_bytes))
        reads, frames, rows = run(alone)
        for rank in range(world):
            shared_reads, shared_frames, shared_rows, nbytes = found[rank][name]
            assert (shared_frames, shared_rows) == (frames, rows)
            assert nbytes < alone.nbytes
            for shared, same, one in zip(shared_reads, found[0][name][0], reads, strict=True):
                torch.testing.assert_close(shared, one)
                assert torch.equal(shared, same), "every rank has the same bits"


def lose_rank_1(rank, world, folder):
    bank = MemoryBank(shard=start(rank, world, folder))
    for number in range(100):
        bank.append(torch.randn(1, CK, H, W), torch.randn(1, CV, H, W))
        if (rank, number) == (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        try:
            bank.read(torch.randn(1, CK, H, W))
        except RankLostError as error:
            with open(f"{folder}/rank{rank}.txt", "w") as file:
                file.write(f"{number} {time.monotonic() - began}\n{error}")
            os._exit(0)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others(tmp_path):
    assert launch(lose_rank_1, 3, tmp_path) == [0, -signal.SIGKILL, 0]
    for rank in (0, 2):
        first, *message = (tmp_path / f"rank{rank}.txt").read_text().splitlines()
        number, seconds = first.split()
        assert number == "3"
        assert float(seconds) < TIMEOUT_SECONDS + 1
        assert len(message) == 1
        assert message[0].startswith(f"rank {rank} of 3: another rank is gone: ")


def shard_of(rank, world):
    shard = Shard()
    shard.rank, shard.world = rank, world
    return shard


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_slot_is_on_one_rank(world):
    shards = [shard_of(rank, world) for rank in range(world)]
    for slots in range(17):
        held = [[slot for slot in range(slots) if shard.holds(slot)] for shard in shards]
        assert sorted(chain.from_iterable(held)) == list(range(slots))
        for shard, mine in zip(shards, held, strict=True):
            assert [shard.local(slot) for slot in mine] == list(range(shard.count(slots)))
        assert shards[0].max_count(slots) == max(map(len, held))
