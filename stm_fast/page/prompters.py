"""The prompters by name."""

from stm_fast.choices import PrompterName
from stm_fast.errors import InputError, option, shown
from stm_fast.page.prompts import GrabCut, Prompter


def make_prompter(name: PrompterName, weights: str | None = None, allow_network: bool = False) -> Prompter:
    """What makes masks of regions and clicks.

    Args:
        name: "grabcut", or "sam2" for a SAM 2 network of the transformers library.
        weights: of SAM 2: a folder, or with `allow_network` the name of a repository of the Hugging Face hub.
        allow_network: whether weights may be downloaded.

    Raises:
        InputError: a package or the weights are missing, or weights are given to GrabCut, which has none.
    """
    if name == "sam2":
        from stm_fast.page.sam2_prompter import Sam2Prompter

        return Sam2Prompter.load(weights, allow_network)
    if weights is not None:
        raise InputError(f"{option('prompter_weights')}: found {shown(weights)}, expected none with grabcut")
    return GrabCut()
