"""Repositories of the Hugging Face hub. Only this module uses the network, through huggingface_hub, an extra."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub
from huggingface_hub import HfApi, ModelHubMixin, errors

from stm_fast.errors import InputError, reason_of
from stm_fast.network.places import CARD, CONFIG, WEIGHTS, Repository

if TYPE_CHECKING:
    from stm_fast.network.stm import STM


class Downloaded(NamedTuple):
    """The files of a repository, in the cache of huggingface_hub."""

    config: Path
    weights: Path


class Published(ModelHubMixin):
    """A network as huggingface_hub's mixin sees it: `push_to_hub` uploads what `STM.save_pretrained` writes.

    Args:
        license: as in `STM.save_pretrained`.
    """

    def __init__(self, model: "STM", license: str) -> None:
        self._model, self._license = model, license

    def _save_pretrained(self, save_directory: Path) -> None:
        self._model.save_pretrained(save_directory, license=self._license)


def download(repository: Repository, **options: Any) -> Downloaded:
    """Downloads the files that are not in the cache yet. Only safetensors are read: no `.bin`, no `.pth`.

    Args:
        options: of `huggingface_hub.hf_hub_download`: `token`, `cache_dir`, `force_download`, `local_files_only`.

    Raises:
        InputError: no such repository, revision or file, no access to it, or no connection.
    """
    _require_answer(repository, options)
    paths = []
    for name in (CONFIG, WEIGHTS):
        with _talking(repository, name):
            path = huggingface_hub.hf_hub_download(repository.name, name, revision=repository.revision, **options)
            paths.append(Path(path))
    return Downloaded(*paths)


def _require_answer(repository: Repository, options: Mapping[str, Any]) -> None:
    """Raises InputError at once if a file has to be downloaded, and the hub cannot be reached.

    `hf_hub_download` would try for 25 seconds or, where requests get no answer, for minutes.
    """
    if options.get("local_files_only"):
        return
    place = {"revision": repository.revision, "cache_dir": options.get("cache_dir")}
    cached = [huggingface_hub.try_to_load_from_cache(repository.name, name, **place) for name in (CONFIG, WEIGHTS)]
    if all(isinstance(path, str) for path in cached) and not options.get("force_download"):
        return
    url = huggingface_hub.hf_hub_url(repository.name, CONFIG, revision=repository.revision)
    with _talking(repository, CONFIG):
        try:
            huggingface_hub.get_hf_file_metadata(url, token=False)
        except errors.HfHubHTTPError:
            return  # an answer, if only a refusal: hf_hub_download will get it, too
        except Exception as error:  # those of the HTTP library
            raise errors.LocalEntryNotFoundError(str(error)) from None


def push(model: "STM", repository: Repository, license: str, **options: Any) -> str:
    """Uploads a network; returns the address of the commit. Raises InputError if that fails."""
    branch = options.setdefault("branch", repository.revision)
    with _talking(repository, WEIGHTS):
        if HfApi(token=options.get("token")).file_exists(repository.name, CARD, revision=branch):
            options.setdefault("ignore_patterns", [CARD])
        return str(Published(model, license).push_to_hub(repository.name, **options))


@contextmanager
def _talking(repository: Repository, file: str) -> Iterator[None]:
    """Turns the errors of huggingface_hub inside the block into an InputError that names the repository."""
    hub = huggingface_hub.constants.ENDPOINT
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError:
        problem = f"access is restricted; accept its terms on {hub}/{repository.name}, and log in with hf auth login"
    except errors.RepositoryNotFoundError:
        problem = f"no such file, and no such repository on {hub}, or a private one, for which hf auth login is needed"
    except errors.RevisionNotFoundError:
        problem = f"no such revision on {hub}"
    except errors.LocalEntryNotFoundError:
        problem = f"no such file, not in the cache of the hub, and no connection to {hub}"
    except errors.EntryNotFoundError:
        problem = f"found no {file} on {hub}, expected {CONFIG} and {WEIGHTS}"
    except Exception as error:  # also those of its HTTP library, which differs between its versions
        problem = f"{hub} cannot be used: {reason_of(error)}"
    else:
        return
    raise InputError(f"{repository}: {problem}")
