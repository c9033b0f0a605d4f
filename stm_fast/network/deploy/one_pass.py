"""From the decoder's logits to probabilities in one pass on a CPU (:mod:`stm_fast.ops.probabilities`)."""

from torch import Tensor

from stm_fast.network.aggregation import EPSILON
from stm_fast.network.padding import Pads
from stm_fast.network.stm import STM, QueryFeatures
from stm_fast.ops import probabilities


class OnePassSTM(STM):
    """An STM whose decoder was replaced by one of :mod:`stm_fast.network.deploy.shared_work`."""

    def probabilities(self, read: Tensor, features: QueryFeatures) -> Tensor:
        """As in `STM`, equal but for rounding."""
        self._check_read(read, features)
        logits = self.decoder(read, features.value, features.r3, features.r2, resized=False)  # [O, 1 or 2, H'/4, W'/4]
        return object_probabilities(logits, features.pads)


def object_probabilities(logits: Tensor, pads: Pads) -> Tensor:
    """The softmax of the soft aggregation of the decoder's logits, resized and without the pads.

    Equal but for rounding, of which there is less: everything is in float32, for logits in half precision too.

    Args:
        logits: [O, 2, h, w] of background and object at stride 4, or [O, 1, h, w] of the object against it.
        pads: what was added around the frame.

    Returns:
        [1 + O, H, W], float32, background first.
    """
    height, width = (probabilities.STRIDE * side for side in logits.shape[-2:])
    left, right, top, bottom = pads
    return probabilities.object_probabilities(
        logits, top=top, left=left, height=height - top - bottom, width=width - left - right, epsilon=EPSILON
    )
