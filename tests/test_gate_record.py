"""The tests that make test skips: only those that passed before, and never all of them."""

import json
from types import SimpleNamespace

import gate_record

COMPILED = [f"tests/test_x_gate.py::test_compiles[{case}]" for case in range(400)]


def items(*names, mark=None):
    return [SimpleNamespace(nodeid=name, get_closest_marker={mark: True}.get) for name in names]


def test_the_gate_depends_on_kernels_operators_tests_and_triton(tmp_path):
    record = tmp_path / "gate.json"
    assert not gate_record.passed_before("compiled", record)
    now = gate_record.state()
    record.write_text(json.dumps(now))
    assert gate_record.passed_before("compiled", record)
    assert gate_record.passed_before("interpreted", record)
    record.write_text(json.dumps(now | {"interpreted": "other operators"}))
    assert gate_record.passed_before("compiled", record)
    assert not gate_record.passed_before("interpreted", record)
    record.write_text(json.dumps(now | {"triton": "3.0.0"}))
    assert not gate_record.passed_before("compiled", record)


def test_any_change_of_a_source_changes_the_state(tmp_path):
    (tmp_path / "kernels").mkdir()
    source = tmp_path / "kernels" / "forward.py"
    source.write_text("one")
    before = gate_record.state(tmp_path)
    source.write_text("two")
    changed = gate_record.state(tmp_path)
    source.rename(source.with_name("backward.py"))
    renamed = gate_record.state(tmp_path)
    assert len({state["compiled"] for state in (before, changed, renamed)}) == 3
    assert len({state["interpreted"] for state in (before, changed, renamed)}) == 3


def test_a_sample_of_the_compiling_tests_and_all_others_are_selected():
    others = items("tests/test_a.py::test_b", "tests/test_a.py::test_c[1]")
    kept = gate_record.compiled_again([*items(*COMPILED, mark="compiles"), *others])
    assert kept[-2:] == others
    assert 5 <= len(kept) - 2 <= 50


def test_few_cases_of_every_test_are_kept():
    found = items(*COMPILED, "tests/test_a.py::test_b", "tests/test_a.py::test_c[1]", "tests/test_a.py::test_c[2]")
    kept = [item.nodeid for item in gate_record.few(found, 2)]
    assert len(kept) == 5
    assert {"tests/test_a.py::test_b", "tests/test_a.py::test_c[1]", "tests/test_a.py::test_c[2]"} < set(kept)


def test_sampling_keeps_every_nth_and_at_least_one():
    found = items(*COMPILED)
    kept = gate_record.one_in(found, 3)
    assert len(kept) == 134
    assert {item.nodeid for item in kept} < set(COMPILED)
    assert gate_record.one_in(found[:2], 3)
