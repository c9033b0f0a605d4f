"""Annotations by other programs, COCO's JSON and SBD's MATLAB files: exact masks, or one line that names the fault."""

import json
import random
import struct
import tracemalloc
import zlib
from math import inf, nan

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from stm_fast.__main__ import app
from stm_fast.data.clips import ClipDataset, SampleKey
from stm_fast.data.coco import CocoSource
from stm_fast.data.images import image_source
from stm_fast.data.sbd import read_mat
from stm_fast.errors import InputError
from stm_fast.training.log import read_log
from stm_fast.video.coco_shapes import MAX_PIXELS, check_shape, rasterize
from training_runs import SMALL, STILL

HEIGHT, WIDTH = SIZE = (32, 48)
PIXELS = HEIGHT * WIDTH
TRIANGLE = [1, 1, 30, 2, 4, 28]
BOX = [5, 4, 25, 4, 25, 20, 5, 20]


def image(**changes):
    return {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH} | changes


def instance(segmentation=None, **changes):
    shape = [TRIANGLE] if segmentation is None else segmentation
    return {"id": 5, "image_id": 1, "iscrowd": 0, "area": 100, "category_id": 1, "segmentation": shape} | changes


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


def runs(counts, size=SIZE):
    return {"size": list(size), "counts": counts}


@pytest.fixture
def coco(tmp_path):
    """Makes a source of a picture 1.png and a file of the given entries."""
    pytest.importorskip("pycocotools")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "1.png")

    def make(images, annotations):
        file = tmp_path / "coco.json"
        file.write_text(json.dumps({"images": images, "annotations": annotations}))
        return CocoSource(tmp_path, file)

    return make


def ids_of(source):
    return source.frame(0, 0).ids


# --- COCO: valid entries


def by_pycocotools(shape, size):
    from pycocotools.coco import COCO

    reader = COCO()
    reader.imgs = {1: {"height": size[0], "width": size[1]}}
    return reader.annToMask({"image_id": 1, "segmentation": shape}) > 0


def drawn_polygons(generator, size):
    """Random polygons, some of which overlap, cross themselves, lie partly outside or repeat points."""
    polygons = []
    for _ in range(generator.integers(1, 5)):
        points = generator.uniform(-8, 8 + np.array(size[::-1]), (generator.integers(3, 12), 2))
        points[1] = points[generator.integers(2)]
        polygons.append((points.round() if generator.random() < 0.3 else points).ravel().tolist())
    return polygons


def run_lengths_of(mask):
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    lengths = np.diff(np.flatnonzero(np.diff(flat))).tolist()
    zeros = int(np.flatnonzero(np.diff(flat))[0])
    return [zeros, *lengths]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_masks_are_those_of_pycocotools():
    coco_mask = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for _ in range(150):
        size = tuple(generator.integers(1, 90, 2).tolist())
        noise = (generator.random(size) < generator.random()).astype(np.uint8)
        packed = coco_mask.encode(np.asfortranarray(noise))["counts"].decode()
        for shape in (drawn_polygons(generator, size), runs(packed, size), runs(run_lengths_of(noise), size)):
            check_shape(shape, size)
            found = rasterize(shape, size).reshape(size[::-1]).T
            assert np.array_equal(found, by_pycocotools(shape, size)), (size, shape)
        assert np.array_equal(found, noise)


def test_run_lengths_may_be_zero():
    assert np.flatnonzero(rasterize(runs([0, 0, 3, 0, 0, 2, PIXELS - 5, 0]), SIZE)).tolist() == [3, 4]


def test_the_largest_object_is_painted_first_and_254_at_most(coco):
    boxes = [instance([BOX], id=1, area=9), instance([[0, 0, 48, 0, 48, 32, 0, 32]], id=2, area=1e3)]
    many = [instance([[0, 0, 48, 0, 48, 1, 0, 1]], id=id, area=8) for id in range(3, 300)]
    ids = ids_of(coco([image()], boxes + many))
    expected = np.ones(SIZE, np.uint8)
    expected[4:20, 5:25] = 2
    expected[0] = 254
    assert np.array_equal(ids, expected)


@pytest.mark.parametrize(
    "annotation",
    [
        instance([BOX]),
        instance([[*BOX, *BOX[:2]]]),
        instance([[float(number) for number in BOX]], area=0, iscrowd=False),
        instance([BOX], id="five", iscrowd=None),
        instance([BOX], keypoints=[nan], bbox="none"),
    ],
)
def test_unusual_but_valid_input_is_accepted(coco, annotation):
    crowd = instance("no shape", id=6, iscrowd=1)
    others = [crowd, instance([BOX], id=7, image_id=3), instance([], id=8), without(instance(id=9), "segmentation")]
    source = coco([image(), image(id=2, height="of no instance")], [annotation, *others])
    source.check_length(3)
    expected = np.zeros(SIZE, np.uint8)
    expected[4:20, 5:25] = 1
    assert len(source) == 1
    assert np.array_equal(ids_of(source), expected)


def test_polygons_are_cut_at_the_edge_of_the_picture(coco):
    source = coco(
        [image(file_name="a/1.png", id="1")], [instance([[-7, -7, 55.9, -7, 55.9, 10, -7, 10]], image_id="1")]
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[:10] = 1
    assert np.array_equal(ids_of(source), expected)


# --- COCO: invalid entries

LONG = [0, 0, 47, 31] * 40_000 + [0, 31]

BAD_INSTANCES = {
    "area text": (instance(area="x"), "found area 'x'"),
    "area bool": (instance(area=True), "found area True"),
    "area missing": (without(instance(), "area"), "found area None"),
    "area NaN": (instance(area=nan), "found area nan"),
    "area infinite": (instance(area=inf), "found area inf"),
    "area negative": (instance(area=-1), "found area -1"),
    "crowd text": (instance(iscrowd="0"), "found iscrowd '0'"),
    "crowd 2": (instance(iscrowd=2), "found iscrowd 2"),
    "text": (instance("polygon"), "found segmentation 'polygon'"),
    "number": (instance(7), "found segmentation 7"),
    "empty polygon": (instance([[]]), "found a polygon of 0 numbers"),
    "line": (instance([[1, 1, 5, 5]]), "found a polygon of 4 numbers"),
    "odd": (instance([[*TRIANGLE, 3]]), "found a polygon of 7 numbers"),
    "second empty": (instance([TRIANGLE, []]), "found a polygon of 0 numbers"),
    "flat": (instance(TRIANGLE), "found 1 as a polygon"),
    "nested": (instance([[[1, 1], [5, 5], [1, 9]]]), r"found \[1, 1\] in a polygon"),
    "mixed kinds": (instance([TRIANGLE, runs([PIXELS])]), "found {'counts'.* as a polygon"),
    "coordinate text": (instance([[*TRIANGLE[:5], "28"]]), "found '28' in a polygon"),
    "coordinate bool": (instance([[*TRIANGLE[:5], True]]), "found True in a polygon"),
    "coordinate null": (instance([[*TRIANGLE[:5], None]]), "found None in a polygon"),
    "coordinate NaN": (instance([[*TRIANGLE[:5], nan]]), "found y nan of a point, expected 0 to 32"),
    "first NaN": (instance([[nan, *TRIANGLE[1:]]]), "found x nan of a point, expected 0 to 48"),
    "infinite": (instance([[*TRIANGLE[:4], -inf, 3]]), "found x -inf"),
    "far": (instance([[1e9, 0, 5, 5, 0, 9]]), "found x 1000000000.0"),
    "far below": (instance([[1, 0, 5, 5, 0, -41]]), "found y -41 of a point, expected 0 to 32 or at most 8 pixels"),
    "beyond a double": (instance([[10**400, 0, 5, 5, 0, 9]]), "found x an integer of 1329 bits of"),
    "twice the size": (instance([[1, 1, 96, 1, 1, 64]]), "found x 96"),
    "long outline": (instance([LONG]), "found an outline that is too long"),
    "long in parts": (instance([LONG[:-2]] * 2), "found an outline that is too long"),
    "no size": (instance({"counts": [PIXELS]}), "found run lengths of size None"),
    "other size": (instance(runs([0, PIXELS], (1, 1))), r"found run lengths of size \[1, 1\], expected \[32, 48\]"),
    "turned size": (instance(runs([0, PIXELS], (48, 32))), r"found run lengths of size \[48, 32\]"),
    "no counts": (instance({"size": list(SIZE)}), "found counts None"),
    "empty counts": (instance(runs([])), r"found counts \[\]"),
    "counts negative": (instance(runs([-1, PIXELS, 1])), r"found runs of \[-1, 1536, 1\]"),
    "counts float": (instance(runs([1.5, PIXELS - 1.5])), r"found counts \[1\.5"),
    "counts bool": (instance(runs([True, PIXELS - 1])), r"found counts \[True"),
    "counts nested": (instance(runs([[PIXELS]])), r"found counts \[\[1536\]\]"),
    "counts huge": (instance(runs([2**64 - PIXELS, PIXELS])), r"found counts \[18446744073709550080"),
    "counts short": (instance(runs([0, PIXELS - 1])), r"found runs of \[0, 1535\] pixels, expected 1536 in all"),
    "counts long": (instance(runs([2, PIXELS - 1])), r"found runs of \[2, 1535\] pixels"),
    "packed without end": (instance(runs("oooooooo")), "found counts 'oooooooo'"),
    "packed empty": (instance(runs("")), "found counts ''"),
    "packed space": (instance(runs("0 1")), "found counts '0 1'"),
    "packed beyond ASCII": (instance(runs("0é")), "found counts '0é'"),
    "packed beyond 30 bits": (instance(runs("PPPPPP1")), "found counts 'PPPPPP1'"),
    "packed negative": (instance(runs("O0")), r"found runs of \[-1, 0\]"),
    "packed short": (instance(runs("011")), r"found runs of \[0, 1, 1\] pixels"),
    "packed too long": (instance(runs("0" * 10_000)), "found counts '0000"),
    "id missing": (without(instance(), "id"), r"annotations\[0\]: found id None"),
    "id list": (instance(id=[5]), r"annotations\[0\]: found id \[5\]"),
    "id bool": (instance(id=True), r"annotations\[0\]: found id True"),
    "image missing": (without(instance(), "image_id"), r"annotations\[0\]: found {.*, expected one with an image_id"),
    "image list": (instance(image_id=[1]), r"annotations\[0\]: found {"),
    "not an object": (3, r"annotations\[0\]: found 3"),
}

BAD_IMAGES = {
    "height missing": (without(image(), "height"), "found height None"),
    "height text": (image(height="32"), "found height '32'"),
    "height bool": (image(height=True), "found height True"),
    "height float": (image(height=32.5), "found height 32.5"),
    "height 0": (image(height=0), "found height 0"),
    "width negative": (image(width=-48), "found width -48"),
    "width huge": (image(width=10**30), "found width 1000"),
    "pixels": (image(height=2**15, width=2**15), f"found 32768x32768 pixels, expected at most {MAX_PIXELS}"),
    "name missing": (without(image(), "file_name"), "found file_name None"),
    "name of two lines": (image(file_name="a\nb.png"), r"found file_name 'a\\nb.png'"),
    "name with a surrogate": (image(file_name="\ud800.png"), r"found file_name '\\ud800.png'"),
    "long name": (image(file_name="a" * 10_000), "found file_name 'aaaa"),
    **{
        f"name {name!r}": (image(file_name=name), ".*file_name")
        for name in ("../1.png", "/1.png", "a/../../1.png", "", ".", "a\0.png", 1, ["1.png"])
    },
}


def assert_one_line(error):
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


def assert_named(source, message):
    """A fault of a source's first item is one short line, both before training and when it is drawn."""
    for use in (lambda: source.check_length(3), lambda: source.frame(0, 0)):
        with pytest.raises(InputError, match=rf"coco\.json: .*{message}") as caught:
            use()
        assert_one_line(caught)


@pytest.mark.parametrize(("annotation", "message"), BAD_INSTANCES.values(), ids=BAD_INSTANCES)
def test_a_bad_instance_is_named(coco, annotation, message):
    number = "" if message.startswith("annotations") else "annotation 5: "
    source = coco([image()], [annotation])
    assert len(source) == 1
    assert_named(source, number + message)


@pytest.mark.parametrize(("entry", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_is_named(coco, entry, message):
    assert_named(coco([entry], [instance()]), f"image 1: {message}")


@pytest.mark.parametrize("entry", [7, None, without(image(), "id"), image(id=None), image(id={}), image(id=1.5)])
def test_an_image_without_an_id_is_named(coco, entry):
    assert_named(coco([entry], []), r"images\[0\]: found .*, expected an image with an id")


def test_a_repeated_id_is_named(coco):
    assert_named(coco([image(), image(file_name="2.png")], [instance()]), "image 1: found two of this id")
    source = coco([image(), image(id=2)], [instance(), instance(image_id=2)])
    assert len(source) == 2
    assert_named(source, "annotation 5: found two of this id")
    with pytest.raises(InputError, match="annotation 5: found two"):
        source.frame(1, 0)


def places(content, *path):
    """The paths of all values in nested lists and dictionaries."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield (*path, key)
        yield from places(content[key], *path, key)


def test_no_value_in_a_coco_file_crashes_a_run(coco):
    shapes = ([TRIANGLE, BOX], runs([5, 9, PIXELS - 14]), runs("5" + "9" + "bl1"))
    whole = {"images": [image()], "annotations": [instance(shape, id=id) for id, shape in enumerate(shapes)]}
    refused = 0
    for path in places(whole):
        for value in (None, True, -1, 0, 2, 10**30, 1e300, nan, inf, "", "0", "\udcff", [], {}, [[]], [3], {"id": 1}):
            content = json.loads(json.dumps(whole))
            *parents, last = path
            inner = content
            for key in parents:
                inner = inner[key]
            inner[last] = value
            try:
                assert ids_of(coco(**content)).shape == SIZE
            except InputError:
                refused += 1
    assert refused > 300


def test_a_refused_outline_takes_no_memory(coco):
    source = coco([image(height=7000, width=7000)], [instance([[0, 0, 7000, 7000, 0, 6999] * 100])])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="too long"):
            source.frame(0, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# --- SBD: MATLAB files


class Mat:
    """Writes the parts of a level 5 file. The names of types and classes are MATLAB's."""

    INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
    TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}  # noqa: RUF012
    CELL, STRUCT, CHAR, DOUBLE, UINT8, OPAQUE = 1, 2, 4, 6, 9, 17

    def __init__(self, order="<"):
        self.order = order

    def pack(self, form, *numbers):
        return struct.pack(self.order + form, *numbers)

    def element(self, kind, data, short=True):
        if short and 0 < len(data) <= 4:
            return self.pack("I", len(data) << 16 | kind) + data.ljust(4, b"\0")
        return self.pack("II", kind, len(data)) + data + bytes(-len(data) % 8)

    def head(self, kind, shape, name=b"", flags=0):
        dimensions = self.element(self.INT32, self.pack(f"{len(shape)}I", *shape))
        marks = self.element(self.UINT32, self.pack("II", kind | flags << 8, 0))
        return marks + dimensions + self.element(self.INT8, name)

    def matrix(self, ids, dtype="u1", kind=UINT8, name=b"", flags=0, short=True):
        numbers = np.asarray(ids).astype(self.order + dtype).tobytes(order="F")
        data = self.element(self.TYPES[dtype], numbers, short)
        return self.element(self.MATRIX, self.head(kind, np.shape(ids), name, flags) + data)

    def struct(self, name, shape=(1, 1), width=32, **fields):
        names = b"".join(field.encode().ljust(width, b"\0") for field in fields)
        parts = self.element(self.INT32, self.pack("I", width)) + self.element(self.INT8, names)
        return self.element(self.MATRIX, self.head(self.STRUCT, shape, name) + parts + b"".join(fields.values()))

    def compressed(self, element):
        data = zlib.compress(element)
        return self.pack("II", self.COMPRESSED, len(data)) + data  # without padding

    def file(self, *variables, version=0x100):
        mark = b"IM" if self.order == "<" else b"MI"
        return b"MATLAB 5.0 MAT-file, by hand".ljust(124) + self.pack("H", version) + mark + b"".join(variables)


@pytest.fixture
def mat(tmp_path):
    """Reads the bytes of a file."""

    def read(content):
        (tmp_path / "a.mat").write_bytes(content)
        return read_mat(tmp_path / "a.mat")

    return read


IDS = np.random.default_rng(0).integers(0, 21, (5, 7), np.uint8)
M = Mat()
GOOD = M.struct(b"GTinst", Boundaries=M.matrix(np.ones((2, 2))), Segmentation=M.matrix(IDS), Categories=M.matrix([[5]]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", sorted(Mat.TYPES))
@pytest.mark.parametrize("compressed", [False, True])
def test_every_way_to_store_a_mask(mat, order, dtype, compressed):
    m = Mat(order)
    kind = m.UINT8 if dtype == "u1" else m.DOUBLE  # MATLAB stores whole numbers of this class in smaller types
    variable = m.struct(b"GTcls", Segmentation=m.matrix(IDS, dtype, kind), CategoriesPresent=m.matrix([[5, 7]], "f8"))
    others = [m.matrix([[1, 2, 3]], "f8", m.DOUBLE, b"x"), m.element(m.MATRIX, m.head(m.OPAQUE, (), b"table")[:24])]
    if compressed:
        variable, others = m.compressed(variable), [m.compressed(other) for other in others]
    found = mat(m.file(*others, variable, others[0]))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, IDS)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (4, 1), (5, 1), (1, 9)])
@pytest.mark.parametrize("short", [False, True])
def test_masks_of_a_few_pixels(mat, shape, short):
    ids = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(mat(M.file(M.struct(b"GTinst", Segmentation=M.matrix(ids, short=short)))), ids)


def test_instances_are_preferred_to_classes(mat):
    classes = M.struct(b"GTcls", Segmentation=M.matrix([[9]]))
    assert np.array_equal(mat(M.file(classes, GOOD)), IDS)
    assert mat(M.file(M.matrix([[9]], name=b"GTinst"), M.struct(b"GTinst", (2, 1)), classes)).tolist() == [[9]]
    logical = M.struct(b"GTinst", Segmentation=M.matrix([[0, 1]], flags=2), width=64)
    assert mat(M.file(logical)).tolist() == [[0, 1]]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["GTinst", "GTcls"])
def test_files_written_by_scipy_are_read(tmp_path, name, compressed):
    scipy_io = pytest.importorskip("scipy.io")
    sparse = pytest.importorskip("scipy.sparse")
    boundaries = np.empty((2, 1), object)
    boundaries[:, 0] = sparse.csc_matrix(np.eye(5)), sparse.csc_matrix(np.eye(3))
    ids = np.random.default_rng(1).integers(0, 255, (37, 50), np.uint8)
    content = {name: {"Boundaries": boundaries, "Segmentation": ids, "Categories": [[5], [7]]}}
    others = {"text": "GTinst", "cell": np.array([[1, "a"]], object), "empty": np.zeros((0, 0))}
    scipy_io.savemat(tmp_path / "a.mat", others | content, do_compression=compressed)
    assert np.array_equal(read_mat(tmp_path / "a.mat"), ids)


def inst(matrix):
    return M.file(M.struct(b"GTinst", Segmentation=matrix))


def stated(size, content=b""):
    """A compressed variable that states this size."""
    return M.file(M.compressed(M.pack("II", M.MATRIX, size) + content))


BAD_MATS = {
    "empty file": (b"", "no header"),
    "text": (b"no MATLAB file" * 20, "no header"),
    "cut header": (M.file()[:-1], "no header"),
    "level 4": (struct.pack("<5I", 0, 5, 7, 0, 13).ljust(200, b"\0"), "no header"),
    "level 7.3": (M.file(version=0x200) + b"\x89HDF", "version 7.3, expected version 7 or before"),
    "level 9": (M.file(version=0x900), "version 0x900"),
    "no variable": (M.file(), "found no Segmentation"),
    "other variable": (M.file(M.struct(b"x", Segmentation=M.matrix(IDS))), "found no Segmentation"),
    "no structure": (M.file(M.matrix(IDS, name=b"GTinst")), "found no Segmentation"),
    "two structures": (M.file(M.struct(b"GTinst", (1, 2), Segmentation=M.matrix(IDS))), "found no Segmentation"),
    "no field": (M.file(M.struct(b"GTinst", Boundaries=M.matrix(IDS))), "found no Segmentation"),
    "three dimensions": (inst(M.matrix(IDS[..., None])), "Segmentation is not a matrix of numbers"),
    "empty": (inst(M.matrix(IDS[:0])), "Segmentation is not a matrix of numbers"),
    "complex": (inst(M.matrix(IDS, flags=8)), "Segmentation is not a matrix of numbers"),
    "letters": (inst(M.matrix(IDS, kind=M.CHAR)), "Segmentation is not a matrix of numbers"),
    "256": (inst(M.matrix(IDS + 256.0, "u2")), "numbers outside 0 to 255"),
    "negative": (inst(M.matrix(IDS - 21.0, "i1")), "numbers outside 0 to 255"),
    "NaN": (inst(M.matrix(IDS * nan, "f8")), "numbers outside 0 to 255"),
    "fractions": (inst(M.matrix(IDS / 2, "f8")), "numbers that are not whole"),
    "fewer pixels": (inst(M.matrix(IDS)).replace(M.pack("II", 5, 7), M.pack("II", 5, 8)), "35 bytes of type 2"),
    "huge sides": (inst(M.matrix(IDS)).replace(M.pack("II", 5, 7), b"\xff" * 8), "35 bytes of type 2"),
    "letters as data": (inst(M.matrix(IDS)).replace(M.pack("II", 2, 35), M.pack("II", 4, 35)), "35 bytes of type 4"),
    "no data": (inst(M.element(M.MATRIX, M.head(M.UINT8, (1, 1)))), "0 bytes of type 0"),
    "empty matrix": (inst(M.element(M.MATRIX, b"")), "ends before an element of type 6"),
    "no matrix": (inst(M.element(9, b"12345678")), "element of type 9, expected 14"),
    "short flags": (M.file(M.element(M.MATRIX, M.element(M.UINT32, b"1234"))), "4 bytes of flags"),
    "fields without width": (M.file(M.struct(b"GTinst", width=0)), "0 bytes of names, 0 for each"),
    "other element": (M.file(M.element(9, b"12345678")), "element of type 9"),
    "half a tag": (M.file(GOOD, b"1234"), "ends within a tag"),
    "long in a tag": (M.file(M.pack("I", 5 << 16 | 1) + b"1234"), "5 bytes within a tag"),
    "states too much": (M.file(M.pack("II", M.MATRIX, 2**32 - 1)), "ends within an element"),
    "not compressed": (M.file(M.pack("II", M.COMPRESSED, 8) + b"12345678"), "incorrect header check"),
    "compressed empty": (M.file(M.compressed(b"")), "end within a tag"),
    "compressed too little": (stated(100, bytes(99)), "size differs from the stated 100 bytes"),
    "compressed too much": (stated(100, bytes(101)), "size differs from the stated 100 bytes"),
    "compressed 4 GiB": (stated(2**32 - 1, bytes(10**6)), "4294967295 compressed bytes, expected at most 67108864"),
    "compressed twice": (M.file(M.compressed(M.compressed(GOOD))), "element of type 15"),
    "checksum": (M.file(M.compressed(GOOD))[:-1] + b"\0", "incorrect data check"),
}


@pytest.mark.parametrize(("content", "message"), BAD_MATS.values(), ids=BAD_MATS)
def test_a_bad_matlab_file_is_named(mat, content, message):
    with pytest.raises(InputError, match=rf"a\.mat: .*{message}") as caught:
        mat(content)
    assert_one_line(caught)


def test_a_matlab_file_takes_no_more_memory_than_it_states(mat):
    bomb = stated(1000, bytes(10**7))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="size differs from the stated 1000 bytes"):
            mat(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_decompressed_bytes_of_a_file_are_bounded(mat, monkeypatch):
    monkeypatch.setattr("stm_fast.data.sbd._MAX_BYTES", 3000)
    other = M.compressed(M.matrix(np.zeros((1, 1200)), name=b"x"))
    assert np.array_equal(mat(M.file(other, M.compressed(GOOD))), IDS)
    with pytest.raises(InputError, match=r"1\d{3} compressed bytes, expected at most \d{3}\)"):
        mat(M.file(other, other, other, M.compressed(GOOD)))
    with pytest.raises(InputError, match=r"a\.mat: 3128 bytes, expected at most 3000"):
        mat(M.file(bytes(3000)))


def test_files_that_are_not_matlab_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.mat: no such file, expected a mask of SBD"):
        read_mat(tmp_path / "none.mat")


@pytest.mark.parametrize("content", [M.file(GOOD), M.file(M.compressed(GOOD))], ids=["plain", "compressed"])
def test_truncated_matlab_files_are_refused(mat, content):
    end = len(content.rstrip(b"\0")) if content[128] == M.MATRIX else len(content)
    for size in (*range(0, 128, 16), *range(128, end, 3), end - 1):
        with pytest.raises(InputError):
            mat(content[:size])


@pytest.mark.parametrize("content", [M.file(GOOD), M.file(M.compressed(GOOD))], ids=["plain", "compressed"])
def test_mutations_of_a_matlab_file_are_read_or_refused(mat, content):
    dice = random.Random(0)
    refused = 0
    for _ in range(250):
        mutated = bytearray(content)
        for _ in range(dice.choice([1, 1, 2, 5])):
            at = dice.randrange(120, len(content))
            word = dice.choice([b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\0", dice.randbytes(1), dice.randbytes(9), b""])
            mutated[at : at + dice.choice([len(word), len(word), dice.randrange(12)])] = word
        try:
            assert mat(mutated).ndim == 2
        except InputError:
            refused += 1
    assert 50 < refused < 250


# --- training skips and counts corrupt items


def dataset(*sources, skip_corrupt):
    return ClipDataset(
        [(source, 1.0) for source in sources],
        length=100,
        frames=2,
        size=(16, 16),
        max_objects=2,
        augmentation=STILL,
        seed=0,
        skip_corrupt=skip_corrupt,
    )


def write_mixed_coco(folder):
    """As many good pictures as bad ones: one for each bad image and instance, some of which belong to no image."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "1.png")
    images, annotations = [], []
    for entry, annotation in [*((image(), each) for each, _ in BAD_INSTANCES.values())] + [
        (each, instance()) for each, _ in BAD_IMAGES.values()
    ]:
        number = 2 * len(images)
        images += [entry | {"id": number}, image(id=number + 1)]
        annotations.append(instance([BOX], id=f"good {number}", image_id=number + 1))
        belongs = isinstance(annotation, dict) and annotation.get("image_id") == 1
        own = {"image_id": number} | ({"id": number} if annotation.get("id") == 5 else {}) if belongs else {}
        annotations.append(annotation | own if own else annotation)
    file = folder / "coco.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


def write_mixed_sbd(folder):
    Image.new("RGB", (7, 5)).save(folder / "good.jpg")
    (folder / "good.mat").write_bytes(M.file(GOOD))
    for number, (content, _) in enumerate(BAD_MATS.values()):
        Image.new("RGB", (7, 5)).save(folder / f"{number}.jpg")
        (folder / f"{number}.mat").write_bytes(content)


def test_corrupt_annotations_of_coco_are_skipped_and_counted(tmp_path):
    pytest.importorskip("pycocotools")
    source = CocoSource(tmp_path, write_mixed_coco(tmp_path))
    faults = []
    for index in range(len(source)):
        try:
            assert source.frame(index, 0).ids.any()
        except InputError as error:
            faults.append(str(error))
    assert len(set(faults)) == len(faults) == len(BAD_INSTANCES) + len(BAD_IMAGES)
    with pytest.raises(InputError) as caught:
        dataset(source, skip_corrupt=False)
    assert str(caught.value) in faults
    clips = [dataset(source, skip_corrupt=True)[SampleKey(0, index, 0)] for index in range(30)]
    skipped = [fault for clip in clips for fault in clip.faults]
    assert len(skipped) > 5
    assert set(skipped) <= set(faults)


def test_corrupt_masks_of_sbd_are_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("stm_fast.data.clips.TRIES", 1000)
    write_mixed_sbd(tmp_path)
    clips = dataset(image_source(tmp_path, "*.jpg", "*.mat"), skip_corrupt=True)
    drawn = [clips[SampleKey(0, index, 0)] for index in range(4)]
    assert {clip.name for clip in drawn} == {str(tmp_path / "good.jpg")}
    assert len({fault for clip in drawn for fault in clip.faults}) > len(BAD_MATS) / 2


@pytest.mark.slow
def test_training_skips_and_counts_corrupt_annotations(tmp_path):
    pytest.importorskip("pycocotools")
    annotations = write_mixed_coco(tmp_path)
    (tmp_path / "sbd").mkdir()
    write_mixed_sbd(tmp_path / "sbd")
    coco = {"kind": "coco", "pictures": str(tmp_path), "annotations": str(annotations), "weight": 4}
    sbd = {"kind": "stills", "path": str(tmp_path / "sbd"), "pictures": "*.jpg", "masks": "*.mat"}
    config = tmp_path / "config.yaml"
    command = ["train", str(config), "--output", str(tmp_path / "run")]
    for source in (coco, sbd):
        config.write_text(yaml.safe_dump(SMALL | {"data": [source]}))
        refused = CliRunner().invoke(app, command)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.exception
        assert refused.stderr.startswith(f"stm-fast: {tmp_path}")
    config.write_text(yaml.safe_dump(SMALL | {"data": [coco, sbd], "log": {"every": 1, "pictures": None}}))
    done = CliRunner().invoke(app, [*command, "--skip-corrupt"])
    assert done.exit_code == 0, done.exception
    skipped = read_log(tmp_path / "run" / "log.jsonl")[-1]["skipped"]
    assert skipped == done.stderr.count("skipped: ") > 0
