"""Names that a user can choose.

They are defined here, not where they are used, because the command line needs them before it imports torch.
"""

from typing import Literal, get_args

Engine = Literal["triton", "cpp", "reference"]  # of the memory read, see `ops.backends`
BackendName = Literal["auto", Engine]
Similarity = Literal["dot", "l2"]  # of a query and a memory row
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)  # operators and kernels take the index
Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal[Dtype, "auto"]
# as torch.compile names them; "reduce-overhead" replays CUDA graphs
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Arch = Literal["lite0", "lite2", "resnet18", "resnet50"]  # of an untrained network
# what a run writes, see `runs.sinks`
Result = Literal[
    "masks",
    "overlay",
    "pictures",
    "matte",
    "alpha",
    "webm",
    "cutout",
    "soft",
    "csv",
    "coco",
    "rle",
]
RESULTS: tuple[Result, ...] = get_args(Result)
DEFAULT_RESULTS: tuple[Result, ...] = ("masks", "overlay", "csv")
PrompterName = Literal["network", "grabcut", "sam2"]  # makes masks of gestures, see `page.prompters`
VideoSetName = Literal["davis16", "davis17", "youtube-vos", "folder"]  # of videos in files, see `data.sequences`
SetName = Literal[VideoSetName, "synthetic"]
ExportFormat = Literal["pt2", "aoti", "onnx"]  # see `export.formats`
ExportBackend = Literal["reference", "cpp"]  # of the memory read in an export

# of the benchmark of memory reads, see `benchmarking.routes`
Pass = Literal["forward", "backward", "top-k"]
ByteLayout = Literal["int8", "fp8"]
RouteName = Literal[
    "published",
    "published-tf32",
    "last-dim",
    "chunks",
    "compile",
    "compile-dynamic",
    "sdpa",
    "sdpa-math",
    "sdpa-flash",
    "sdpa-efficient",
    "sdpa-cudnn",
    "sdpa-flash-split",
    "sdpa-cudnn-split",
    "flex",
    "flex-32x32",
    "flex-64x32",
    "flex-64x64",
    Engine,
    ByteLayout,
]
# of the benchmark of whole frames, see `benchmarking.frames`
Variant = Literal[
    "published",
    "engine",
    "prepared",
    "no-previous",
    "bfloat16-memory",
    "bfloat16",
    "compiled",
    "bfloat16-graphs",
    "float16",
]
