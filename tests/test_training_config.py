"""Training configurations: what a YAML file may contain, and how each fault is reported."""

from dataclasses import asdict, astuple
from pathlib import Path

import pytest

from stm_fast.errors import InputError
from stm_fast.training.config import Skip, SyntheticData
from stm_fast.training.config_file import config_text, from_plain, read_config, write_config
from stm_fast.training.recipes import RECIPES, configuration_file, introduction
from stm_fast.training.run_folder import CONFIG_HEADER
from stm_fast.training.sampler import StepSampler
from stm_fast.training.schedule import Schedule, max_skip, rate_factor
from training_runs import SMALL, SMALL_CONFIG

CONFIGS = RECIPES.values()

MINIMAL = "epochs: 2\nclips_per_epoch: 10\ndata: [{kind: synthetic}]\n"


def minimal_with(text):
    """The minimal configuration, with the text in place of the key that it begins with."""
    kept = [line for line in MINIMAL.splitlines(keepends=True) if line.split(":")[0] != text.split(":")[0]]
    return "".join(kept) + text


@pytest.fixture
def write(tmp_path):
    file = tmp_path / "config.yaml"

    def written(text):
        file.write_text(text)
        return file

    return written


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_configuration_is_valid(file):
    config = read_config(file)
    assert from_plain(asdict(config), "again") == config


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_written_configuration_is_read_as_it_was(file, tmp_path):
    changes = ["optimizer.lr=3.3e-7", "data.0.weight=1e-9", "seed=9223372036854775807", "weights='a: b # ü'"]
    config = read_config(file, changes)
    written = tmp_path / "written.yaml"
    write_config(config, written, CONFIG_HEADER)
    assert read_config(written) == config
    assert config != read_config(file)


def test_the_small_configuration_is_the_same_without_pydantic():
    assert from_plain(SMALL, "test") == SMALL_CONFIG


def test_defaults_are_those_of_the_paper(write):
    config = read_config(write(MINIMAL))
    assert config.data == (SyntheticData("synthetic"),)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.batch) == ("adam", 1e-5, 4)
    assert (config.clips.frames, config.clips.size, config.batch_norm) == (3, (384, 384), "fixed")
    assert config.network.backbone == "resnet50"


def test_a_number_without_a_point_is_a_number(write):
    config = read_config(write(MINIMAL + "optimizer: {lr: 1e-5, clip_norm: 1}\n"))
    assert (config.optimizer.lr, config.optimizer.clip_norm) == (1e-5, 1.0)


def test_overrides_reach_nested_fields(write):
    changes = ["optimizer.lr=3e-4", "data.0.weight=2", "validation={kind: davis16, path: D}", "clips.size=[64, 96]"]
    config = read_config(write(MINIMAL), [*changes, "validation.every=3", "ema=0.999"])
    assert config.optimizer.lr == 3e-4
    assert config.data[0].weight == 2
    assert config.clips.size == (64, 96)
    assert config.validation.every == 3
    assert config.ema == 0.999


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate: unknown key, expected one of name, lr"),
        ("optimzer: {lr: 1}", "optimzer: unknown key, did you mean optimizer?"),
        ("optimizer: {lr: fast}", "optimizer.lr: found 'fast', expected a number"),
        ("optimizer: {batch: 4.5}", "optimizer.batch: found 4.5, expected a whole number"),
        ("optimizer: {batch: true}", "optimizer.batch: found True, expected a whole number"),
        ("loss: {detach_memory: 1}", "loss.detach_memory: found 1, expected true or false"),
        ("optimizer: 3", "optimizer: found 3, expected keys and values"),
        ("precision: fp64", "precision: found 'fp64', expected fp32, bf16 or fp16"),
        ("clips: {size: [384]}", "clips.size.1: missing"),
        ("clips: {size: 384}", "clips.size: found 384, expected a list"),
        ("data: [{kind: davis18, path: D}]", "data.0.kind: found 'davis18', expected davis16, davis17,"),
        ("data: [{kind: davis16}]", "data.0.path: missing"),
        ("data: [{kind: davis16, path: D, splt: train}]", "data.0.splt: unknown key, did you mean split?"),
        ("data: [{kind: [stills]}]", "data.0.kind: found a list, expected davis16, davis17,"),
        ("seed: -1", "seed: found -1, expected at least 0"),
        ("seed: 2001-99-99", "not YAML (month must be in 1..12)"),
        ("weights: [1]", "weights: found a list, expected text"),
        ("validation: {kind: synthetic, max_size: 9}", "validation.max_size: found 9, expected at least 16"),
        ("validation: {kind: synthetic, max_size: 96, min_size: 128}", "validation.max_size: found 96, expected at le"),
        ("validation: {kind: synthetic, min_size: 0}", "validation.min_size: found 0, expected at least 1"),
        ("frozen_stages: -1", "frozen_stages: found -1, expected at least 0"),
        ("optimizer: {trunk_lr: 0}", "optimizer.trunk_lr: found 0, expected more than 0"),
        ("epochs:", "epochs: found nothing, expected a whole number"),
        ("3: 4", "3: unknown key"),
        ("clips: {size: [384, 384, 3]}", "clips.size: found a list of 3, expected a list of at most 2"),
        ("clips: {size: [384, 100]}", "clips.size.1: found 100, expected a multiple of 16"),
        ("network: {shared_trunk: 1}", "network.shared_trunk: found 1, expected true or false"),
        ("network: {key_dim: 64.0}", "network.key_dim: found 64.0, expected a whole number"),
        ("augmentation: {hue: true}", "augmentation.hue: found True, expected a finite number"),
        ("augmentation: {crop_area: [0.8, 0.5]}", "augmentation.crop_area: found [0.8, 0.5], expected the smaller"),
        ("data: [{kind: synthetic, length: 0}]", "data.0.length: found 0, expected at least 1"),
        ("data: [{kind: synthetic, hidden: 1.5}]", "data.0.hidden: found 1.5, expected at most 1"),
        ("data: [{kind: synthetic, objects: []}]", "data.0.objects: found a list of 0, expected a list of at least 1"),
        ("data: []", "data: found a list of 0, expected a list of at least 1"),
        ("data: [3]", "data.0: found 3, expected keys and values"),
        ("data: [{path: D}]", "data.0.kind: missing"),
        ("validation: {kind: davis16, path: D, evry: 1}", "validation.evry: unknown key, did you mean every?"),
        ("ema: 1", "ema: found 1, expected less than 1"),
        ("backend: fast", "backend: found 'fast', expected auto, triton, cpp or reference"),
    ],
)
def test_faults_are_named_by_their_key(write, text, message):
    file = write(minimal_with(text))
    with pytest.raises(InputError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML in line 1"), ("- 1", "found a list"), ("", "found nothing"), ("epochs: 1\n", "data: missing")],
)
def test_a_file_that_is_no_configuration_is_refused(write, text, message):
    with pytest.raises(InputError, match=message):
        read_config(write(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read_config(tmp_path / "none.yaml")


def test_a_recipe_has_a_name_and_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"tiny", "stage1", "stage2", "burst", "1_heads", "open"} <= RECIPES.keys()
    Path("tiny").mkdir()  # such as the folder of its run
    assert configuration_file(Path("tiny")) == RECIPES["tiny"]
    Path("stage1").write_text(MINIMAL)
    assert configuration_file(Path("stage1")) == Path("stage1")


@pytest.mark.parametrize("name", ["teeny", "tiny.yaml", "./tiny/", "configs/tiny.yaml", ""])
def test_what_is_neither_a_file_nor_a_recipe_gets_their_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    expected = f": no such file, expected a training configuration in YAML, or a recipe: {', '.join(RECIPES)}"
    with pytest.raises(InputError) as caught:
        configuration_file(tmp_path / name)
    assert str(caught.value).endswith(expected)


@pytest.mark.parametrize(
    ("text", "comments"),
    [("# one\n# two\nepochs: 1\n# three\n", "# one\n# two\n"), ("epochs: 1\n", ""), ("# one", "# one")],
)
def test_a_printed_configuration_keeps_the_comments_at_the_head(write, text, comments):
    assert introduction(write(text)) == comments


def test_a_printed_configuration_is_read_as_the_recipe(write):
    for recipe in RECIPES.values():
        config = read_config(recipe)
        text = config_text(config, introduction(recipe))
        assert text.startswith(recipe.read_text().splitlines()[0])
        assert read_config(write(text)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs", "--set epochs: expected key=value"),
        ("data.1.weight=2", "--set data.1.weight=2: found '1', expected 0 to 0"),
        ("epochs.most=2", "--set epochs.most=2: found 2 above most, expected keys and values"),
        ("epochs=[", "--set epochs=[: not YAML"),
    ],
)
def test_invalid_overrides_are_refused(write, change, message):
    with pytest.raises(InputError) as caught:
        read_config(write(MINIMAL), [change])
    assert str(caught.value).startswith(message)


def doubling(levels):
    """Lists that each contain the previous one twice."""
    return "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(levels))


def merging(levels):
    """The same with merge keys."""
    return "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(levels))


HOSTILE = [
    (doubling(25), "found more than 10000 values, counting expanded aliases"),
    (merging(25), "found more than 10000 values"),
    ("a: &a [*a]", "found a value inside itself in line 4"),
    ("a: &a {<<: *a}", "found a value inside itself in line 4"),
    ("seed: [" + "1, " * 20_000 + "1]", "found more than 10000 values"),
    ("seed: " + "[" * 3000, "found values nested more than 32 levels deep"),
    ("seed: " + "{a: " * 3000, "found values nested more than 32 levels deep"),
    ("- " * 3000, "not YAML in line 4"),
    ("seed: " + "x" * 5000, "found 'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx' of 5000 characters"),
    ("x" * 900 + ": 1", "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx': unknown key, expected one of"),
    ("# " + "x" * 2**20, "found 1048634 bytes, expected a training configuration in YAML, of at most 1048576"),
    ("seed: !!bool maybe", "not YAML in line 4 ('maybe' is no bool)"),
    ("seed: !!timestamp soon", "not YAML in line 4 ('soon' is no timestamp)"),
    ("seed: !!int few", "not YAML (invalid literal for int()"),
    ("seed: !!int {}", "not YAML in line 4 (expected a scalar node"),
    ("seed: !!python/object/apply:os.getpid []", "not YAML in line 4 (could not determine a constructor"),
    ("a: !" + "x" * 9000 + " 3", "not YAML in line 4 (could not determine a constructor"),
    ("seed: 2001-01-01", "seed: found datetime.date(2001, 1, 1), expected a whole number"),
    ("seed: !!binary AAAA", "seed: found b'\\x00\\x00\\x00', expected a whole number"),
    ("seed: !!set {a}", "seed: found {'a'}, expected a whole number"),
    ("seed: " + "9" * 4000, "seed: found an integer of 13288 bits, expected at most 9223372036854775807"),
    ("seed: 0x" + "f" * 4000, "seed: found an integer of 16000 bits, expected at most 9223372036854775807"),
    ("optimizer: {lr: " + "9" * 400 + "}", "optimizer.lr: found an integer of 1329 bits, expected a finite number"),
    ("optimizer: {lr: 1e400}", "optimizer.lr: found '1e400', expected a finite number"),
    ("optimizer: {lr: .nan}", "optimizer.lr: found nan, expected a finite number"),
    ("optimizer: {clip_norm: .inf}", "optimizer.clip_norm: found inf, expected a finite number"),
    ("optimizer: {lr: infinity}", "optimizer.lr: found 'infinity', expected a finite number"),
    ("loss: {iou_weight: -.inf}", "loss.iou_weight: found -inf, expected a finite number"),
    ("optimizer: {lr: 1.0, lr: 2.0}", "'lr': found twice, again in line 4, expected once"),
    (
        "optimizer: {lr: 1.0}\nseed: 1\noptimizer: {batch: 2}",
        "'optimizer': found twice, again in line 6, expected once",
    ),
    ("\tseed: 1", "not YAML in line 4 (found character '\\t'"),
    ("seed: \0", "not YAML (unacceptable character #x0000"),
    ("? [1, 2]\n: 3", "not YAML in line 4 (found unhashable key)"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE, ids=lambda text: text[:20].strip())
def test_hostile_yaml_is_reported_in_one_short_line(write, text, message):
    file = write(minimal_with(text))
    with pytest.raises(InputError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_decompression_bomb_on_the_command_line_is_reported_in_one_short_line(write):
    bomb = f"seed={{{', '.join(doubling(25).splitlines())}}}"
    for change in (
        bomb,
        "seed=" + "[" * 3000,
        "seed=" + "x" * 10**5,
        "x" * 10**5,
        "a." * 1000 + "b=1",
        "data." + "9" * 5000 + "=1",
    ):
        with pytest.raises(InputError) as caught:
            read_config(write(MINIMAL), [change])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_configuration_is_utf_8_with_or_without_a_byte_order_mark(tmp_path, mark):
    file = tmp_path / "config.yaml"
    file.write_bytes(mark + (MINIMAL + "weights: ö.pth").encode())
    assert read_config(file).weights == "ö.pth"
    for encoding in ("utf-16", "latin-1"):
        file.write_bytes((MINIMAL + "weights: ö.pth").encode(encoding))
        with pytest.raises(InputError, match=r"config\.yaml: found invalid UTF-8 at byte \d+"):
            read_config(file)


def test_yaml_anchors_and_merge_keys_work(write):
    text = "epochs: 1\nclips_per_epoch: 9\ndata: [&one {kind: synthetic, height: 64}, *one, {<<: *one, width: 64}]\n"
    first, second, third = read_config(write(text), ["data.0.weight=2"]).data
    assert (first.height, first.weight, first.width) == (64, 2, 192)
    assert (second.height, second.weight, second.width) == (64, 1, 192)
    assert (third.height, third.weight, third.width) == (64, 1, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"epochs: {10**30}", "epochs: found 1000000000000000000000000000000, expected at most 1000000000"),
        (f"clips_per_epoch: {10**12}", "clips_per_epoch: found 1000000000000, expected at most 1000000000"),
        (
            "clips: {size: [1600000000, 1600000000]}",
            "clips.size.0: found 1600000000, expected at most 8192",
        ),
        ("clips: {frames: 1000000}", "clips.frames: found 1000000, expected at most 1000"),
        ("clips: {max_objects: 256}", "clips.max_objects: found 256, expected at most 255"),
        ("workers: 1000000", "workers: found 1000000, expected at most 512"),
        (f"optimizer: {{batch: {10**12}}}", "optimizer.batch: found 1000000000000, expected at most 65536"),
        (
            "clips: {size: [8192, 8192], frames: 900}\noptimizer: {batch: 9}",
            "optimizer.batch: found 9, expected at most",
        ),
        ("optimizer: {lr: 1.0e+9}", "optimizer.lr: found 1000000000.0, expected at most 1000"),
        ("network: {key_dim: 1000000}", "network.key_dim: found 1000000, expected 1 to 4096"),
        ("network: {position_waves: 1000000}", "network.position_waves: found 1000000, expected 0 to 32"),
        (f"schedule: {{warmup: {10**30}}}", "schedule.warmup: found 1000000000000000000000000000000, expected at most"),
        (f"validation: {{kind: synthetic, height: {10**9}}}", "validation.height: found 1000000000, expected at most"),
        (
            f"validation: {{kind: synthetic, clips: {10**9}}}",
            "validation.clips: found 1000000000, expected at most 65536",
        ),
        (
            f"validation: {{kind: synthetic, min_size: {2**62}}}",
            "validation.min_size: found 4611686018427387904, expected",
        ),
        (f"data: [{{kind: synthetic, width: {10**9}}}]", "data.0.width: found 1000000000, expected at most 8192"),
        (
            f"data: [{{kind: synthetic, objects: [1, {10**9}]}}]",
            "data.0.objects.1: found 1000000000, expected at most 255",
        ),
        ("data: [{kind: synthetic, weight: 1.0e+300}]", "data.0.weight: found 1e+300, expected at most 1000000000"),
        ("augmentation: {still_zoom: 1.0e+300}", "augmentation.still_zoom: found 1e+300, expected at most 1000"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_built(write, text, message):
    file = write(minimal_with(text))
    with pytest.raises(InputError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_the_skip_grows_as_published():
    skips = [max_skip(Skip(), epoch) for epoch in (0, 19, 20, 40, 99, 100, 259)]
    assert skips == [0, 0, 5, 10, 20, 25, 25]


def test_the_learning_rate_rises_and_falls():
    assert [rate_factor(Schedule(), step, 10) for step in (0, 9)] == [1, 1]
    assert rate_factor(Schedule("poly", power=0.9), 5, 10) == pytest.approx(0.5**0.9)
    assert rate_factor(Schedule("cosine"), 5, 10) == pytest.approx(0.5)
    assert [rate_factor(Schedule(warmup=3), step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_a_step_has_the_same_clips_whichever_worker_loads_them(processes, parts):
    config = from_plain(
        SMALL | {"optimizer": {"batch": 4, "accumulate": parts}, "skip": {"every": 1}, "clips_per_epoch": 7}, "test"
    )
    shares = [list(StepSampler(config, 1, rank, processes)) for rank in range(processes)]
    steps = [
        sorted(
            astuple(ticket) for share in shares for part in share[step * parts : (step + 1) * parts] for ticket in part
        )
        for step in range(2)
    ]
    assert steps == [[(0, 4, 0), (0, 5, 0), (0, 6, 0), (1, 0, 5)], [(1, index, 5) for index in range(1, 5)]]
