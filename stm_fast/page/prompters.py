"""The prompters by name."""

from stm_fast.choices import PrompterName
from stm_fast.clicks.prompter import ClickPrompter
from stm_fast.errors import InputError, option, shown
from stm_fast.page.prompts import GrabCut, Prompter


def make_prompter(
    name: PrompterName, weights: str | None = None, *, device: str = "auto", allow_network: bool = False
) -> Prompter:
    """What makes masks of regions and clicks.

    Args:
        name: "network" for the package's click network, "grabcut", or "sam2" for a SAM 2 network of the transformers
            library.
        weights: of a network: by default the package's; of SAM 2: a folder, or with `allow_network` the name of a
            repository of the Hugging Face hub.
        device: of a network: "auto", "cpu", "cuda" or "cuda:N".
        allow_network: whether weights may be downloaded.

    Raises:
        InputError: a package or the weights are missing, there is no such device, or weights are given to GrabCut.
    """
    if name == "network":
        return _with_clicks(weights, device)
    if name == "sam2":
        from stm_fast.page.sam2_prompter import Sam2Prompter

        return Sam2Prompter.load(weights, allow_network, device)
    if weights is not None:
        raise InputError(f"{option('prompter_weights')}: found {shown(weights)}, expected none with grabcut")
    return GrabCut()


def _with_clicks(weights: str | None, device: str) -> Prompter:
    """A click network; an error in a file of the user names the argument."""
    try:
        return ClickPrompter.load(weights, device)
    except InputError as error:
        if weights is None:
            raise
        raise InputError(f"{option('prompter_weights')}: {error}") from None
