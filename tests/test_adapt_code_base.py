"""adapt() outside the model: STCN's MemoryBank and the functions of XMem's family, in stand-ins for their projects.

The stand-ins have the names, signatures and shapes of the published code; their formulas are written out, in float64.
"""

import importlib
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

import stm_fast
from family_formulas import assert_near, randn
from stm_fast.ops import adapters

CK, CV, H, W = 4, 6, 3, 3
M, N = H * W, 2 * H * W

MEMORY_UTIL = """
import math

def get_similarity(mk, ms, qk, qe):
    key, query = mk.flatten(2), qk.flatten(2)
    distance = ((key[..., None] - query[:, :, None]).square() * qe.flatten(2)[:, :, None]).sum(1)
    return -distance * ms.flatten(1)[..., None] / math.sqrt(mk.shape[1])

def do_softmax(similarity, top_k=None, inplace=False, return_usage=False):
    if top_k is not None:
        least = similarity.topk(top_k, dim=1).values.amin(1, keepdim=True)
        similarity = similarity.masked_fill(similarity < least, -math.inf)
    affinity = similarity.softmax(1)
    return (affinity, affinity.sum(2)) if return_usage else affinity

def get_affinity(mk, ms, qk, qe):
    return do_softmax(get_similarity(mk, ms, qk, qe))

def readout(affinity, mv):
    return (mv.flatten(2) @ affinity).reshape(*mv.shape[:2], *mv.shape[3:])
"""
NETWORK = """
from torch import nn
from model.memory_util import *

class XMem(nn.Module):
    def read_memory(self, query_key, query_selection, memory_key, memory_shrinkage, memory_value):
        return readout(get_affinity(memory_key, memory_shrinkage, query_key, query_selection), memory_value)
"""
MEMORY_MANAGER = """
from model.memory_util import *

class MemoryManager:
    def match_memory(self, mk, ms, qk, qe, mv):
        similarity = get_similarity(mk, ms, qk, qe)
        affinity, usage = do_softmax(similarity[:, -12:], top_k=5, inplace=True, return_usage=True)
        return mv[..., -12:] @ affinity, usage
"""
SELECTION = """
from model.memory_util import get_similarity

def spread(*tensors):
    return get_similarity(*tensors).std(1)
"""
MEMORY_BANK = """
import math
import torch

class MemoryBank:
    def __init__(self, k, top_k=20):
        self.top_k = top_k
        self.num_objects = k

    def _global_matching(self, mk, qk):
        score = -(mk[..., None] - qk[:, :, None]).square().sum(1) / math.sqrt(mk.shape[1])
        least = score.topk(self.top_k, dim=1).values.amin(1, keepdim=True)
        return score.masked_fill(score < least, -math.inf).softmax(1)

    def _readout(self, affinity, mv):
        return torch.bmm(mv, affinity)

    def match_memory(self, qk):
        affinity = self._global_matching(self.mem_k, qk.flatten(2))
        read = self._readout(affinity.expand(self.num_objects, -1, -1), self.mem_v)
        return read.view(self.num_objects, -1, *qk.shape[2:])
"""
XMEM = {
    "model/memory_util.py": MEMORY_UTIL,
    "model/network.py": NETWORK,
    "inference/memory_manager.py": MEMORY_MANAGER,
    "inference/selection.py": SELECTION,
}
STCN = {
    "model/eval_network.py": "from torch import nn\nclass STCN(nn.Module):\n    pass\n",
    "inference_memory_bank.py": MEMORY_BANK,
    "inference_core.py": "from inference_memory_bank import MemoryBank\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a project below a folder and imports its modules; afterwards they are forgotten."""
    before = set(sys.modules)

    def load(files, folder="project", *names):
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        monkeypatch.syspath_prepend(tmp_path / folder)
        names = names or [name.removesuffix(".py").replace("/", ".") for name in files]
        return SimpleNamespace(**{name.rpartition(".")[2]: importlib.import_module(name) for name in names})

    yield load
    for name in set(sys.modules) - before:
        del sys.modules[name]


def training_tensors():
    """As XMem.read_memory() takes them."""
    selection = torch.rand(1, CK, H, W, dtype=torch.float64)
    return randn(1, CK, H, W), selection, randn(1, CK, 2, H, W), 1 + randn(1, 1, 2, H, W) ** 2, randn(1, CV, 2, H, W)


def inference_tensors():
    """As MemoryManager.match_memory() takes them."""
    query, selection, key, shrinkage, _ = training_tensors()
    return key.flatten(2), shrinkage.flatten(2), query, selection, randn(3, CV, N)


class TestFunctions:
    def test_every_module_that_reads(self, project):
        code = project(XMEM)
        model, manager = code.network.XMem(), code.memory_manager.MemoryManager()
        trained, tested = training_tensors(), inference_tensors()
        read, (out, usage) = model.read_memory(*trained), manager.match_memory(*tested)
        before = {name: dict(vars(module)) for name, module in vars(code).items()}

        adapted = stm_fast.adapt(model)
        network = "XMem, Cutie, DEVA, XMem++, Track-Anything and MatAnyone"
        functions = "get_similarity", "do_softmax", "get_affinity", "readout"
        modules = "model.memory_util", "model.network", "inference.memory_manager"
        lines = {f"{m}.{f}() of {network} -> stm_fast.memory_read" for m in modules for f in functions}
        assert set(adapted.replaced) == lines
        assert len(adapted.replaced) == len(lines)
        assert code.memory_manager.get_similarity is adapters.get_similarity
        assert_near(model.read_memory(*trained), read)
        found, found_usage = manager.match_memory(*tested)
        assert_near(found, out)
        assert_near(found_usage, usage)

        adapted.restore()
        assert {name: dict(vars(module)) for name, module in vars(code).items()} == before

    def test_a_module_that_wants_the_matrix_keeps_its_function(self, project, caplog):
        code = project(XMEM)
        tensors = inference_tensors()[:4]
        expected = code.selection.spread(*tensors)
        with caplog.at_level(logging.INFO, logger="stm_fast"):
            stm_fast.adapt(code.network.XMem())
        assert torch.equal(code.selection.spread(*tensors), expected)
        assert "inference.selection keeps its get_similarity(): it does not use do_softmax()" in caplog.messages

    def test_gradients(self, project):
        code = project(XMEM)
        model, tensors = code.network.XMem(), [tensor.requires_grad_() for tensor in training_tensors()]
        expected = torch.autograd.grad(model.read_memory(*tensors).square().sum(), tensors)
        stm_fast.adapt(model)
        found = torch.autograd.grad(model.read_memory(*tensors).square().sum(), tensors)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other)

    def test_modules_imported_later(self, project):
        code = project(XMEM, "project", "model.network")
        stm_fast.adapt(torch.nn.DataParallel(code.network.XMem()))
        later = importlib.import_module("inference.memory_manager")
        assert later.readout is adapters.readout

    def test_the_backend(self, project):
        code = project(XMEM)
        model = code.network.XMem()
        with stm_fast.adapt(model, backend="triton"), pytest.raises(NotImplementedError, match="triton"):
            model.read_memory(*training_tensors())

    def test_a_second_model_of_the_same_code(self, project):
        code = project(XMEM)
        stm_fast.adapt(code.network.XMem())
        second = stm_fast.adapt(code.network.XMem())
        assert second.replaced == ()
        assert "model.network" in str(second)

    def test_a_project_below_that_of_the_model(self, project):
        """As in Track-Anything, whose tracker/ is on the path by itself too."""
        inner = {f"tracker/{name}": content for name, content in XMEM.items() if name != "model/network.py"}
        project({**inner, "networks.py": NETWORK}, "project", "os")
        code = project({}, "project/tracker", "networks", "inference.memory_manager")
        stm_fast.adapt(code.networks.XMem())
        assert code.memory_manager.readout is adapters.readout

    def test_an_installed_package(self, project):
        files = {
            f"cutie_like/{name}": text.replace("from model", "from cutie_like.model") for name, text in XMEM.items()
        }
        code = project(files, "lib/site-packages")
        stm_fast.adapt(code.network.XMem())
        assert code.memory_manager.readout is adapters.readout

    def test_other_packages_keep_what_they_hold(self, project):
        code = project(XMEM)
        other = project({"other.py": "from model.memory_util import *"}, "project/.venv/lib/site-packages").other
        before = dict(vars(other))
        stm_fast.adapt(code.network.XMem())
        assert dict(vars(other)) == before
        assert code.network.readout is adapters.readout

    @pytest.mark.parametrize(
        ("was", "found", "reason"),
        [
            ("def readout(affinity, mv)", "def readout(affinity, mv, mask)", r"found readout\(affinity, mv, mask\)"),
            ("def do_softmax", "def soft_max", r"no do_softmax\(\)"),
        ],
    )
    def test_other_functions_of_these_names(self, project, was, found, reason):
        util = MEMORY_UTIL.replace(was, found)
        assert util != MEMORY_UTIL
        code = project({"model/memory_util.py": util, "model/network.py": NETWORK})
        before = dict(vars(code.network))
        with pytest.raises(ValueError, match=rf"model\.memory_util is not that of XMem, .*: {reason}"):
            stm_fast.adapt(code.network.XMem())
        assert dict(vars(code.network)) == before


FORKS = {
    "model.memory_util is not that of XMem": XMEM
    | {"model/memory_util.py": MEMORY_UTIL.replace("-distance *", "-2 * distance *")},
    "inference_memory_bank.MemoryBank is not that of STCN": STCN
    | {"inference_memory_bank.py": MEMORY_BANK.replace("score = -(", "score = -2 * (")},
}


@pytest.mark.parametrize("message", FORKS)
def test_a_fork_with_another_formula_is_left_alone(project, message):
    code = project(FORKS[message])
    model = code.network.XMem() if "XMem" in message else code.eval_network.STCN()
    with pytest.raises(ValueError, match=rf"{message}.*: its read differs by 0\.\d+ from that one's formula"):
        stm_fast.adapt(model)


def test_a_script_that_reads_by_itself_does_not_make_a_model_read(project):
    script = "from stm_fast.ops.adapters import do_softmax, get_similarity\n"
    code = project({"net.py": "from torch import nn\nclass Net(nn.Module):\n    pass\n", "script.py": script})
    with pytest.raises(ValueError, match=r"^model: found net\.Net without a known memory read"):
        stm_fast.adapt(code.net.Net())


def test_a_network_that_imports_ours_already(project):
    network = NETWORK.replace(
        "from model.memory_util import *", "from stm_fast.ops.adapters import get_affinity, readout"
    )
    code = project({"model/network.py": network})
    adapted = stm_fast.adapt(code.network.XMem())
    assert str(adapted) == "nothing left to replace: stm_fast reads already in model.network.get_affinity"


class TestMemoryBank:
    def bank(self, code, **options):
        bank = code.inference_core.MemoryBank(3, **options)
        bank.mem_k, bank.mem_v = randn(1, CK, N), randn(3, CV, N)
        return bank

    def test_reads_the_same_and_restores(self, project):
        code = project(STCN)
        model, bank, query = code.eval_network.STCN(), self.bank(code, top_k=7), randn(1, CK, H, W)
        expected, before = bank.match_memory(query), dict(vars(type(bank)))
        with stm_fast.adapt(model) as adapted:
            assert adapted.replaced == ("inference_memory_bank.MemoryBank of STCN -> stm_fast.memory_read",)
            assert_near(bank.match_memory(query), expected)
            assert stm_fast.adapt(model).replaced == ()
        assert dict(vars(type(bank))) == before
        assert torch.equal(bank.match_memory(query), expected)

    def test_fewer_rows_than_top_k(self, project):
        code = project(STCN)
        bank, query = self.bank(code, top_k=N), randn(1, CK, H, W)
        expected = bank.match_memory(query)
        bank.top_k = 50  # the published code raises
        stm_fast.adapt(code.eval_network.STCN())
        assert_near(bank.match_memory(query), expected)

    def test_the_backend(self, project):
        code = project(STCN)
        bank = self.bank(code)
        with (
            stm_fast.adapt(code.eval_network.STCN(), backend="triton"),
            pytest.raises(NotImplementedError, match="triton"),
        ):
            bank.match_memory(randn(1, CK, H, W))

    def test_inference_code_that_is_not_imported(self, project):
        code = project(STCN, "project", "model.eval_network")
        with pytest.raises(ValueError, match="code that is not imported yet is not found"):
            stm_fast.adapt(code.eval_network.STCN())

    def test_another_class_of_the_name(self, project):
        bank = MEMORY_BANK.replace("def _readout(self, affinity, mv)", "def _readout(self, affinity, mv, mask=None)")
        code = project(STCN | {"inference_memory_bank.py": bank})
        with pytest.raises(
            ValueError, match=r"\(inference_memory_bank\.MemoryBank is not that of STCN: found _readout"
        ):
            stm_fast.adapt(code.eval_network.STCN())
