"""Private names of PyTorch: those that the package needs exist, and are used in one module only."""

import ast
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from stm_fast import torch_private

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = re.compile(r"torch(\.\w+)*\._[^\W_]\w*(\.\w+)*")  # a dotted name with a part that has one leading underscore
MODULE = Path(torch_private.__file__)


def private_names(path: Path) -> set[str]:
    """The full private names of PyTorch that a file imports or uses: a part has one leading underscore."""
    tree = ast.parse(path.read_text())
    full_names = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "torch":
            full_names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    used = set(full_names.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            used.add(f"{full_names[root]}.{rest}" if root in full_names else "")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("torch."):
            used.add(node.value)
    return {name for name in used if PRIVATE.fullmatch(name)}


@pytest.mark.parametrize("name", sorted(private_names(MODULE)))
def test_a_private_name_that_the_package_needs_exists(name):
    resolve_name(name)


def test_every_kind_of_private_name_is_found(tmp_path):
    source = tmp_path / "source.py"
    source.write_text(
        "import torch\nfrom torch import autograd as a, nn\nfrom torch._C import x as y\n"
        "torch._dynamo.z(nn.Module.__name__, torch.__version__)\na._level\ny.name\nprint(f('torch._dynamo.exc'))\n"
    )
    found = {"torch._C.x", "torch._C.x.name", "torch._dynamo", "torch._dynamo.z", "torch._dynamo.exc"}
    assert private_names(source) == found | {"torch.autograd._level"}


@pytest.mark.parametrize("folder", ["stm_fast", "kernels"])
def test_private_names_are_in_one_module(folder):
    paths = [path for path in (ROOT / folder).rglob("*.py") if path != MODULE]
    assert paths
    assert {path.name: private_names(path) for path in paths if private_names(path)} == {}
