"""The measures of the DAVIS benchmark (Perazzi et al., CVPR 2016)."""

import numpy as np
import numpy.typing as npt


def region_similarity(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Region similarity J: intersection over union of two masks ``[H, W]``; 1 where both are empty."""
    union = np.count_nonzero(prediction | truth)
    return 1.0 if union == 0 else float(np.count_nonzero(prediction & truth) / union)
