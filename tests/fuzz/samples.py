"""Small valid files of every kind that is read. A sample maps file names in a folder to contents."""

import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.containers import EXIF

Files = dict[str, bytes]
HEIGHT, WIDTH = 16, 24


def image(number: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def ids() -> np.ndarray:
    """uint8 [H, W] with two objects."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:8, 2:10], mask[9:14, 12:20] = 1, 2
    return mask


def written_by(write: Callable[[Path], object]) -> Files:
    """The files that a function writes into an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        return {
            str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
        }


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def video(suffix: str, codec: str, frames: int = 4, **options: Any) -> bytes:
    """A few frames of noise."""
    import av

    buffer = io.BytesIO()
    forms = {"mp4": "mp4", "mkv": "matroska", "avi": "avi", "webm": "webm", "gif": "gif", "mov": "mov"}
    with av.open(buffer, "w", format=forms[suffix], options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.thread_count = 1
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image(number), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def videos() -> list[Files]:
    return [
        {"clip.mp4": video("mp4", "mpeg4")},
        {"clip.mp4": video("mp4", "mpeg4", movflags="frag_keyframe+empty_moov")},
        {"clip.mkv": video("mkv", "mpeg4")},
        {"clip.avi": video("avi", "mjpeg")},
        {"clip.avi": video("avi", "mpeg4")},
        {"clip.gif": video("gif", "gif")},
    ]


def picture_files() -> list[tuple[str, bytes]]:
    """Suffixes and contents of pictures of one size; those with EXIF are stored sideways."""
    whole, turned = Image.fromarray(image()), Image.fromarray(image().transpose(1, 0, 2))
    return [
        (".jpg", saved(turned, "JPEG", exif=b"Exif\0\0" + EXIF)),
        (".jpg", saved(whole, "JPEG", progressive=True)),
        (".png", saved(turned, "PNG", exif=EXIF)),
        (".png", saved(whole.quantize(16), "PNG")),
        (".png", saved(whole.convert("RGBA"), "PNG")),
        (".webp", saved(turned, "WEBP", exif=EXIF)),
        (".webp", saved(whole, "WEBP", lossless=True)),
        (".tif", saved(whole, "TIFF")),
        (".png", saved(Image.fromarray(image()[:, :, 0].astype(np.uint16) * 9), "PNG")),
    ]


def picture_folders() -> list[Files]:
    first = saved(Image.fromarray(image(1)), "PNG")
    return [{"frames/00000.png": first, f"frames/00001{end}": content} for end, content in picture_files()]


def mask_files() -> list[bytes]:
    """Masks as PNGs of every kind, and as JPEG."""
    from stm_fast.video import DAVIS_PALETTE

    grey = Image.fromarray(ids())
    palette = grey.copy()
    palette.putpalette(DAVIS_PALETTE)
    void = np.where(ids() == 2, 255, ids()).astype(np.uint8)
    return [
        saved(palette, "PNG"),
        saved(palette, "PNG", bits=2),
        saved(grey, "PNG"),
        saved(Image.fromarray(void), "PNG"),
        saved(Image.fromarray((ids() > 0) * np.uint8(255)).convert("1"), "PNG"),
        saved(Image.fromarray((ids() > 0) * np.uint8(255)).convert("RGBA"), "PNG"),
        saved(Image.fromarray((ids() > 0) * np.uint8(255)).convert("LA"), "PNG"),
        saved(Image.fromarray((ids() > 0) * np.uint8(255)), "JPEG"),
    ]


def stacks() -> list[Files]:
    """TIFF files of several pages."""
    gray = [Image.fromarray(image(n)[:, :, 0].astype(np.uint16) * 9) for n in range(3)]
    color = [Image.fromarray(image(n)) for n in range(3)]
    text = "ImageJ=1.54f\nimages=3\nslices=3\nmin=9.0\nmax=2000.0\n"
    written: list[dict[str, Any]] = [{}, {"tiffinfo": {270: text}}, {"compression": "tiff_adobe_deflate"}]
    return [
        {"stack.tif": saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options)}
        for pages in (gray, color)
        for options in written
    ]


def masks() -> list[Files]:
    return [{f"mask{'.jpg' if content[:1] == bytes([255]) else '.png'}": content} for content in mask_files()]


def mask_folders() -> list[Files]:
    return [
        _frames() | {"masks/00000.png": content, "masks/00002.png": mask_files()[0]}
        for content in mask_files()
        if content[:1] != bytes([255])
    ]


def coco() -> list[Files]:
    picture = saved(Image.fromarray(image()), "JPEG")
    size = {"height": HEIGHT, "width": WIDTH}
    annotations = [
        {"segmentation": [[2, 2, 9, 2, 9, 8, 2, 8]], "area": 42.0, "bbox": [2, 2, 7, 6]},
        {"segmentation": [[1, 1, 3, 1, 2, 3], [12, 9, 19, 9, 19, 13, 12, 13.5]], "area": 30.5},
        {"segmentation": {"counts": [10, 20, HEIGHT * WIDTH - 30], "size": [HEIGHT, WIDTH]}, "area": 20},
        {"segmentation": {"counts": "`02>0O1O", "size": [HEIGHT, WIDTH]}, "area": 20},
        {"segmentation": {"counts": [HEIGHT * WIDTH], "size": [HEIGHT, WIDTH]}, "area": 1, "iscrowd": 1},
    ]
    common = {"image_id": 7, "category_id": 1, "iscrowd": 0}
    return [
        {
            "pictures/7.jpg": picture,
            "instances.json": json.dumps(
                {
                    "images": [{"id": 7, "file_name": "7.jpg", **size}],
                    "categories": [{"id": 1, "name": "thing"}],
                    "annotations": [common | {"id": number} | one for number, one in enumerate(some, start=1)],
                }
            ).encode(),
        }
        for some in (annotations[:2], annotations[2:3], annotations)
    ]


def _frames() -> Files:
    return {f"frames/{n:05d}.png": saved(Image.fromarray(image(n)), "PNG") for n in range(3)}


def annotations() -> list[Files]:
    """Masks of the frames 0 and 2 as COCO, YouTube-VIS and LabelMe."""
    size, runs = {"height": HEIGHT, "width": WIDTH}, {"size": [HEIGHT, WIDTH]}
    shapes = [
        [[2, 2, 9, 2, 9, 8, 2, 8]],
        runs | {"counts": [10, 20, HEIGHT * WIDTH - 30]},
        runs | {"counts": "`02>0O1O"},
    ]
    images = [{"id": n, "file_name": f"frames/{n:05d}.jpg", **size} for n in range(3)]
    common = {"category_id": 1, "iscrowd": 0}
    tracked = [
        common | {"id": 9 * n + k, "image_id": n, "track_id": k, "segmentation": shapes[k]}
        for n in (0, 2)
        for k in range(3)
    ]
    coco = {"images": images, "categories": [{"id": 1, "name": "thing"}], "annotations": tracked}
    several = [common | {"id": k, "video_id": 4, "segmentations": [shapes[k], None, shapes[k]]} for k in range(3)]
    videos = [{"id": 4, "file_names": [one["file_name"] for one in images], **size}]
    points = {"polygon": [[1, 1], [9, 2], [5, 8.5]], "rectangle": [[10, 1], [14, 5]], "circle": [[15, 9], [15, 12]]}
    drawn = [{"label": kind, "group_id": None, "shape_type": kind, "points": points[kind]} for kind in points]
    labelme = {"shapes": drawn, "imageHeight": HEIGHT, "imageWidth": WIDTH, "imagePath": "00000.png"}
    contents = [coco, {**coco, "annotations": tracked[:1]}, {**coco, "videos": videos, "annotations": several}]
    return [
        *(_frames() | {"masks.json": json.dumps(content).encode()} for content in contents),
        _frames() | {f"masks/0000{n}.json": json.dumps(labelme).encode() for n in (0, 2)},
    ]


def pages() -> list[Files]:
    """Masks of all frames as a TIFF."""
    stack = [Image.fromarray(ids()), Image.new("L", (WIDTH, HEIGHT)), Image.fromarray(ids())]
    deep = [Image.fromarray(np.array(page, np.uint16)) for page in stack]
    return [
        _frames() | {"masks.tif": saved(those[0], "TIFF", save_all=True, append_images=those[1:], compression=how)}
        for those, how in ((stack, None), (stack, "tiff_deflate"), (deep, None))
    ]


def boxes() -> list[Files]:
    table = "frame,object,x,y,width,height\n0,1,1,2,3,4\n00002,7,5,6,7.5,8\n"
    return [
        {"boxes.csv": table.encode()},
        {"boxes.json": b'{"0": {"1": [1, 2, 3, 4]}, "00002": {"7": [5, 6, 7.5, 8]}}'},
    ]


def _mat_element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def _mat_array(form: int, shape: tuple[int, ...], name: bytes, *parts: bytes) -> bytes:
    """A MATLAB 5 matrix of a class (2: struct, 9: uint8)."""
    head = _mat_element(6, struct.pack("<II", form, 0)) + _mat_element(5, struct.pack(f"<{len(shape)}i", *shape))
    return _mat_element(14, head + _mat_element(1, name) + b"".join(parts))


def mats() -> list[Files]:
    """`inst` and `cls` of SBD, plain and compressed."""
    import zlib

    head = b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + struct.pack("<H", 0x0100) + b"IM"
    found = []
    for name in (b"GTinst", b"GTcls"):
        pixels = _mat_array(9, (HEIGHT, WIDTH), b"", _mat_element(2, ids().tobytes("F")))
        fields = _mat_element(5, struct.pack("<i", 32)), _mat_element(1, b"Segmentation".ljust(32, b"\0"))
        matrix = _mat_array(2, (1, 1), name, *fields, pixels)
        packed = zlib.compress(matrix)
        found += [{"a.mat": head + matrix}, {"a.mat": head + struct.pack("<II", 15, len(packed)) + packed}]
    return found


CONFIG = """# a run
network: {backbone: resnet18_half, key_dim: 8, value_dim: 8, decoder_dim: 8}
batch_norm: batch
data:
  - {kind: synthetic, length: 3, height: 48, width: 48, objects: [1, 2]}
  - {kind: davis17, path: DAVIS, split: train}
clips: {frames: 3, size: [32, 32], max_objects: 2}
augmentation: {crop_area: [0.5, 1], crop_stretch: 1, flip: 0.5}
skip: {first: 5}
optimizer: {lr: 1e-3, batch: 2}
schedule: {name: poly, warmup: 2}
epochs: 2
clips_per_epoch: 5
log: {every: 2, pictures: null, checkpoint: 2}
"""


def configs() -> list[Files]:
    from stm_fast.training.recipes import RECIPES

    return [{"run.yaml": text} for text in (CONFIG.encode(), *(file.read_bytes() for file in RECIPES.values()))]


def _set(names: str, lists: Files, resolution: str = "") -> Files:
    picture, mask = saved(Image.fromarray(image()), "JPEG"), mask_files()[0]
    return lists | {
        f"{names}{kind}/{resolution}{name}/00000{end}": content
        for kind, end, content in (("JPEGImages", ".jpg", picture), ("Annotations", ".png", mask))
        for name in ("bear", "car two")
    }


def sets() -> list[Files]:
    pairs = b"/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n"
    return [
        _set("", {"ImageSets/2017/val.txt": b"bear\n"}, "480p/"),
        _set("", {"ImageSets/2016/val.txt": b"bear\n"}, "480p/"),
        _set("", {"ImageSets/480p/val.txt": pairs}, "480p/"),
        _set("", {"ImageSets/val.txt": b"bear\nbear\n"}),
    ]


def metas() -> list[Files]:
    videos = {
        name: {
            "objects": {"1": {"category": "bear", "frames": ["00000"]}, "2": {"category": "car", "frames": ["00000"]}}
        }
        for name in ("bear", "car two")
    }
    return [_set("valid/", {"valid/meta.json": json.dumps({"videos": videos}).encode()})]


def run_records() -> list[Files]:
    from stm_fast.record_file import write_record_file

    timing = {"sequence": "bear", "frames": 3, "objects": 2, "network_seconds": 0.5, "seconds": 1.0}
    timing["stage_seconds"] = {"decode": 0.1, "write": 0.2}

    def write(folder: Path) -> None:
        (folder / "timings").mkdir()
        write_record_file(folder / "run.json", RUN)
        write_record_file(folder / "timings/bear.json", timing)

    return [written_by(write)]


RUN = {"set": "davis17", "split": "val", "memory": {"every": 5}, "weights": "abc"}


def object_tables() -> list[Files]:
    header = "index,frame,time,object,pixels,x,y,width,height,center_x,center_y,probability,score,state"
    cells = [(n, o, "found", "4,5,6,7,8.50,9.50") for n in range(3) for o in (1, 2)] + [(3, 1, "lost", ",,,,,")]
    rows = [f"{n},{n:05d},0.{n}00000,{o},{20 * o},{box},0.9{n}0,0.500,{state}" for n, o, state, box in cells]
    return [{"objects.csv": "\n".join([header, *rows, ""]).encode()}]


def logs() -> list[Files]:
    lines = [{"step": step, "loss": 0.5 / step, "clips_per_second": 3.0, "skipped": 0} for step in (1, 2, 3)]
    return [{"log.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}]


def benchmark_records() -> list[Files]:
    from stm_fast.benchmarking.records import ReadRow, Record

    timed, skipped = (ReadRow("480p", "float32", "forward", route) for route in ("cpp", "sdpa"))
    rows = [replace(timed, seconds=0.5), replace(skipped, skipped="no room")]
    record = Record({"cpu": "x"}, {"rounds": 3}, rows)
    return [written_by(lambda folder: record.write(folder / "record.json"))]


def frame_records() -> list[Files]:
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    return [{"record.json": (results / "network-cpu-avx2.json").read_bytes()}]


def small_states() -> dict[str, Any]:
    """The weights of a small network by our names; every tensor is a single number, expanded."""
    import torch

    from stm_fast.network import STM

    entries = STM("resnet18_half", 8, 8, 8).state_dict().items()
    return {
        name: torch.full((), number % 7, dtype=tensor.dtype).expand(tensor.shape)
        for number, (name, tensor) in enumerate(entries)
    }


def checkpoints() -> list[Files]:
    import safetensors.torch
    import torch

    from stm_fast.network.checkpoint import published_name

    state = small_states()
    published = {"state_dict": {f"module.{published_name(name)}": tensor for name, tensor in state.items()}, "epoch": 3}
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    half = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in whole.items()}

    def torch_file(content: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        return buffer.getvalue()

    return [
        {"a.pth": torch_file(state)},
        {"a.pth": torch_file(published)},
        {"a.pth": torch_file(state, _use_new_zipfile_serialization=False)},
        {"a.safetensors": safetensors.torch.save(whole, {"format": "stm_fast"})},
        {"a.safetensors": safetensors.torch.save(half)},
    ]


def resume_state() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        "object_ids": torch.tensor([1, 7]),
        "frame_count": torch.tensor(3),
        "seen.frame": torch.rand(3, 4, 5, generator=generator),
        "bank.kind": torch.tensor(list(b"model rows on the device"), dtype=torch.uint8),
    }


def resumes() -> list[Files]:
    from stm_fast.runs.checkpoint import Checkpoint
    from stm_fast.runs.ranks import Ranks

    return [written_by(lambda folder: Checkpoint(folder, RUN, Ranks()).save(3, [1, 7], resume_state()))]


def training_config() -> Any:
    import yaml

    from stm_fast.training.config_file import from_plain

    return from_plain(yaml.safe_load(CONFIG), "the configuration")


def trainings() -> list[Files]:
    import torch

    from stm_fast.training.checkpoint import write_state

    weight = {"a.weight": torch.ones(2, 3, 1, 1), "a.bias": torch.ones(2)}
    moments = {n: {"step": torch.tensor(3.0), "exp_avg": w, "exp_avg_sq": w} for n, w in enumerate(weight.values())}
    state = {
        "model": weight,
        "average": {f"module.{name}": tensor for name, tensor in weight.items()} | {"n_averaged": torch.tensor(1)},
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]},
        "step": 3,
        "best": 0.5,
        "window": {"losses": [0.5], "seconds": 1.0, "skipped": 0},
        "scaler": None,
        "config": asdict(training_config()),
    }
    return [
        written_by(lambda folder: write_state(folder / "checkpoint.pt", state)),
        written_by(lambda folder: write_state(folder / "checkpoint.pt", state, compact=True)),
    ]
