"""Training runs: resumed ones equal uninterrupted ones, what they write, and what stops them."""

import json
import math
import multiprocessing
import shutil

import pytest
import torch

from stm_fast.errors import InputError
from stm_fast.network import STM, load_checkpoint
from stm_fast.training.averaging import weight_average
from stm_fast.training.checkpoint import read_state, write_state
from stm_fast.training.config_file import from_plain
from stm_fast.training.log import TrainingLog
from stm_fast.training.resuming import state_of
from stm_fast.training.run_folder import RunFolder
from training_runs import SMALL, assert_same_up_to_rounding, curve, make_trainer, stop_after, tensors

STEPS = 5


def assert_same_run(found, expected):
    assert curve(found) == curve(expected)
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert make_trainer(folder, ema=0.9).run()
    return folder


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path):
    for pieces, resume in ((1, False), (3, True)):
        assert not make_trainer(tmp_path, resume, ema=0.9).run(stop_after(pieces))
    assert make_trainer(tmp_path, True, ema=0.9).run()
    assert_same_run(tmp_path, whole)


class _Killed(BaseException):
    pass


@pytest.mark.slow
def test_work_after_the_last_checkpoint_is_repeated(whole, tmp_path):
    def kill(done, steps):
        if done == 3:
            raise _Killed

    with pytest.raises(_Killed):
        make_trainer(tmp_path, ema=0.9).run(progress=kill)
    assert read_state(tmp_path / "checkpoint.pt")["step"] == 2
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"loss": 0.7')  # a line that a kill cut off
    assert make_trainer(tmp_path, True, ema=0.9).run()
    assert_same_run(tmp_path, whole)


def test_a_finished_run_has_nothing_left_to_do(whole):
    before = (whole / "checkpoint.pt").read_bytes()
    for epochs in (2, 1):  # also if it is longer than now requested
        assert make_trainer(whole, True, ema=0.9, epochs=epochs).run()
    assert (whole / "checkpoint.pt").read_bytes() == before


def test_the_log_has_a_line_for_every_few_steps(whole):
    lines = curve(whole)
    assert [line["step"] for line in lines] == [2, 4, STEPS]
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
    assert lines[0]["learning_rate"] == pytest.approx(1e-3 * 2 / 3 * (4 / 5) ** 0.9)
    assert lines[-1]["epoch"] == 2


@pytest.mark.slow
def test_clips_that_workers_load_are_the_same(whole, tmp_path):
    make_trainer(tmp_path, ema=0.9, workers=1).run()
    assert_same_run(tmp_path, whole)


def test_a_batch_in_parts_trains_like_a_whole_one(tmp_path):
    """With fixed statistics, because a part's statistics differ from those of the batch."""
    for name, parts in (("whole", 1), ("parts", 2)):
        changes = {"batch_norm": "fixed", "epochs": 1, "log": {"every": 1, "pictures": None}}
        make_trainer(tmp_path / name, optimizer={"lr": 1e-5, "batch": 2, "accumulate": parts}, **changes).run()
    assert_same_up_to_rounding(tmp_path / "parts", tmp_path / "whole")


def test_the_average_forgets_its_start_and_follows_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average = weight_average(model, 0.5)
    expected = None
    for step in range(6):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update_parameters(model)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = float(step) if expected is None else kept * expected + (1 - kept) * step
    assert average.module.weight.item() == pytest.approx(expected)


@pytest.mark.slow
def test_the_best_validated_weights_are_kept(tmp_path):
    validation = {"kind": "synthetic", "clips": 1, "frames": 4, "height": 48, "width": 48}
    make_trainer(tmp_path, validation=validation, log={"every": 2, "pictures": 4, "checkpoint": 100}).run()
    scores = [line for line in curve(tmp_path) if "J&F-Mean" in line]
    assert [line["step"] for line in scores] == [3, STEPS]  # the steps that end epochs
    best = max(line["J&F-Mean"] for line in scores)
    assert read_state(tmp_path / "checkpoint.pt")["best"] == best
    for name in ("best", "model"):
        load_checkpoint(STM(**SMALL["network"]), tmp_path / f"{name}.safetensors")
    assert [file.name for file in sorted((tmp_path / "pictures").iterdir())] == ["step-0000004.png", "step-0000005.png"]


@pytest.mark.slow
def test_scores_of_another_validation_do_not_count(tmp_path):
    validation = {"kind": "synthetic", "clips": 1, "frames": 4, "height": 48, "width": 48}
    make_trainer(tmp_path, validation=validation).run()
    file, config = RunFolder(tmp_path).checkpoint, {"validation": validation}
    for changes, kept in ((config, True), (config | {"log": {"every": 1}}, True), ({}, False)):
        assert math.isfinite(state_of(file, from_plain(SMALL | changes, "test"))["best"]) == kept


def test_sequences_that_cannot_be_scored_are_named_before_training(tmp_path):
    validation = {"kind": "synthetic", "clips": 1, "frames": 2, "height": 48, "width": 48}
    with pytest.raises(InputError, match="found 2 annotated frames, expected at least 3 to score"):
        make_trainer(tmp_path, validation=validation)


def test_another_run_is_not_overwritten(whole):
    with pytest.raises(InputError, match=r"checkpoint\.pt: already holds a run; give another output, or resume=True"):
        make_trainer(whole, ema=0.9)


@pytest.mark.parametrize("name", ["model", "best"])
def test_weights_of_another_run_are_not_overwritten(tmp_path, name):
    """Its checkpoint, the largest file, may have been deleted."""
    weights = tmp_path / f"{name}.safetensors"
    weights.touch()
    with pytest.raises(InputError, match=rf"{name}\.safetensors: already holds a run"):
        RunFolder(tmp_path).claim(resume=False)
    RunFolder(tmp_path).claim(resume=True, inputs=[tmp_path / "other"])
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=rf"{name}\.safetensors: found as both input and output"):
        RunFolder(tmp_path / "link").claim(resume=True, inputs=[weights])


def test_pictures_are_not_written_through_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pictures").symlink_to("..")
    with pytest.raises(
        InputError,
        match=r"pictures: found a symbolic link to \.\., expected a folder, because files",
    ):
        RunFolder(tmp_path / "run").claim(resume=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["pictures"]


@pytest.mark.slow
def test_a_run_is_resumed_only_with_the_settings_it_began_with(whole):
    with pytest.raises(InputError, match=r"the run began with optimizer\.lr 0\.001, found 0\.1 now, expected the same"):
        make_trainer(whole, True, ema=0.9, optimizer={"lr": 0.1, "batch": 2})
    with pytest.raises(InputError, match=r"the run began with ema 0\.9, found None now, expected the same"):
        make_trainer(whole, True)
    make_trainer(whole, True, ema=0.9, log={"every": 1})


@pytest.mark.slow
def test_a_run_resumes_with_batches_in_more_parts(tmp_path):
    changes = {"batch_norm": "fixed", "log": {"every": 1, "pictures": None}}
    for name, parts in (("whole", 1), ("parts", 2)):
        assert not make_trainer(tmp_path / name, optimizer={"lr": 1e-5, "batch": 2}, **changes).run(stop_after(2))
        optimizer = {"lr": 1e-5, "batch": 2, "accumulate": parts}
        assert make_trainer(tmp_path / name, True, optimizer=optimizer, **changes).run()
    assert_same_up_to_rounding(tmp_path / "parts", tmp_path / "whole")


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of a training run"):
        make_trainer(tmp_path, True)
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of a training run, expected one that"):
        make_trainer(tmp_path, True)


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"optimizer\.batch: found 3 clips per step, expected a multiple of 2"):
        make_trainer(tmp_path, optimizer={"batch": 3, "accumulate": 2})


def test_a_precision_that_the_machine_lacks_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU has it")
    with pytest.raises(InputError, match="precision: found fp16, which needs a GPU"):
        make_trainer(tmp_path, precision="fp16")
    make_trainer(tmp_path)  # the refusal has no lasting effect


def test_a_process_has_one_precision(whole, tmp_path):
    with pytest.raises(InputError, match="precision: found bf16 in a process that began with another one"):
        make_trainer(tmp_path, precision="bf16")


def test_a_nan_loss_ends_the_run(tmp_path):
    trainer = make_trainer(tmp_path)
    next(trainer._learner.model.parameters()).data.fill_(math.nan)
    with pytest.raises(InputError, match=r"the loss of step \d is nan; start again with a lower optimizer\.lr"):
        trainer.run()


def write_logs_on_a_full_disk(disk):
    """In a separate process, because TensorBoard's thread may print a traceback at any time."""
    for kibibytes in (0, 4, 8, 12, 16, 24, 32):
        folder, other = disk / str(kibibytes), disk / "other"
        folder.mkdir()
        other.write_bytes(bytes((124 - kibibytes) * 1024))
        with pytest.raises(InputError, match="disk full while writing"):  # noqa: PT012
            log = TrainingLog(folder, 0)
            for step in range(1000):
                log.write({"step": step, "loss": 0.1})
        other.unlink()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_full_disk_is_reported_when_the_log_is_written(small_disk):
    pytest.importorskip("tensorboard")
    process = multiprocessing.get_context("spawn").Process(target=write_logs_on_a_full_disk, args=(small_disk,))
    process.start()
    process.join(600)
    assert process.exitcode == 0


def test_tensorboard_has_the_values_of_the_log(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(whole / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in curve(whole)]


def test_the_last_good_checkpoint_survives_a_full_disk(small_disk):
    file = small_disk / "checkpoint.pt"
    write_state(file, {"step": 1, "model": torch.zeros(10_000)})
    with pytest.raises(InputError, match=r"disk full while writing .*checkpoint\.pt"):
        write_state(file, {"step": 2, "model": torch.zeros(30_000)})
    assert read_state(file)["step"] == 1
    assert [left.name for left in small_disk.iterdir()] == ["checkpoint.pt"]


def test_checkpoints_hold_no_code(whole):
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    assert json.dumps(state["config"])
