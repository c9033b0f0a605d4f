"""Automatic warp specialisation: this Triton cannot give it to the forward loop, and the kernel asks for none."""

import os
import subprocess

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from stm_fast.kernels import compile_gate_specialised as gate
from stm_fast.kernels.compile_gate import Case, launch_of, source


@pytest.mark.compiles
def test_this_triton_cannot_specialise_the_forward_loop():
    assert gate.specialised_reasons(), f"Triton {triton.__version__} can: see kernels/README.md, Warp specialisation"


@pytest.mark.compiles
def test_what_it_specialises_is_seen():
    assert gate.specialised_reasons(gate.SpecialisedCase(64, cleared=False)) == []


@pytest.mark.compiles
def test_the_forward_kernel_has_one_kind_of_warps():
    launch = launch_of(Case("forward", 90, "half", torch.bfloat16, 128, 512, "rows"))
    assert (launch.config.block_m, launch.config.num_warps) == (gate.BLOCK_M, 2 * gate.NUM_WARPS)
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    compiled = triton.compile(source(launch), target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert "setmaxnreg" not in compiled.asm["ptx"]


def test_a_request_that_is_ignored_is_a_reason(monkeypatch):
    monkeypatch.setattr(gate, "NUM_WARPS", 8)
    assert gate.specialised_reasons() == ["the request was ignored"]


def test_a_compiler_that_fails_is_a_reason_and_is_quiet(monkeypatch, capfd):
    def fail(*_, **__):
        subprocess.run(["echo", "listing"], stdout=2, check=True)
        raise RuntimeError("no")

    monkeypatch.setattr(triton, "compile", fail)
    assert gate.specialised_reasons() == ["it does not compile: RuntimeError: no"]
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"
