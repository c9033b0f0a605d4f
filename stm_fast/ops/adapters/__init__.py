"""Drop-in memory reads for published models of the STM family, with their tensor layouts, names and quirks."""

from stm_fast.ops.adapters.affinity import Affinity, Scores
from stm_fast.ops.adapters.aot import AOTLongTermAttention, DeAOTGatedPropagation
from stm_fast.ops.adapters.mivos import MiVOSMemoryReader
from stm_fast.ops.adapters.stcn import STCNMemoryReader, stcn_read
from stm_fast.ops.adapters.stm import MaskPropagationMemoryReader, STMMemory
from stm_fast.ops.adapters.xmem import do_softmax, get_affinity, get_similarity, readout, xmem_read

__all__ = [
    "AOTLongTermAttention",
    "Affinity",
    "DeAOTGatedPropagation",
    "MaskPropagationMemoryReader",
    "MiVOSMemoryReader",
    "STCNMemoryReader",
    "STMMemory",
    "Scores",
    "do_softmax",
    "get_affinity",
    "get_similarity",
    "readout",
    "stcn_read",
    "xmem_read",
]
