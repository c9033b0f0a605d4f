"""Links between documents work on the site as they do in the repository.

A page that consists of one `include` shows a document from another folder. Links to documents that have a page lead to
that page, those to other files to the repository, and pictures that the build makes are taken from its folder.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

# a page that shows a document of another folder
_INCLUDE = re.compile(r"\s*```\{include\} (\S+)\n```\s*")
# code, which has no links, or a link or picture with its target
_LINK = re.compile(r"(^ *(`{3,}|:{3,}).*?^ *\2`*$|`[^`\n]+`(?!\]))|(\]\()([^)\s]+)(?=[)\s])", re.DOTALL | re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_GENERATED = "_generated/"


def pages_of(docs: Path) -> dict[Path, str]:
    """The page, as "/name.md", that shows each document."""
    pages = {}
    for path in (path for pattern in ("*.md", "api/*.md", "*.ipynb") for path in sorted(docs.glob(pattern))):
        shown = _INCLUDE.fullmatch(path.read_text()) if path.suffix == ".md" else None
        document = (path.parent / shown[1]).resolve() if shown else path
        pages[document] = f"/{path.relative_to(docs).as_posix()}"
    return pages


def resolved(
    text: str, document: Path, pages: dict[Path, str], pictures: str, to_repository: Callable[[Path], str]
) -> str:
    """The text of a document with the links of a page. Targets that do not exist remain, and Sphinx warns of them."""

    def replaced(found: re.Match[str]) -> str:
        code, _, opening, target = found.groups()
        if code is not None or re.match(r"[a-z]+:|#|/", target):
            return found[0]
        if target.startswith(_GENERATED):
            return f"{opening}{pictures}/{target.removeprefix(_GENERATED)}"
        path, mark, anchor = target.partition("#")
        named = Path(os.path.normpath(document.parent / path))
        if named in pages:
            return f"{opening}{pages[named]}{mark}{anchor}"
        is_picture = path.endswith((".png", ".jpg", ".svg", ".webp"))
        return f"{opening}{to_repository(named)}" if named.exists() and not is_picture else found[0]

    return _LINK.sub(replaced, text)


def setup(app: Sphinx, root: Path, repository: str, pictures: Path) -> None:
    """Resolves the links of every page as it is read; `pictures` is the folder of those that the build makes."""
    docs = Path(app.srcdir)
    pages = pages_of(docs)

    def to_repository(path: Path) -> str:
        return f"{repository}/{'tree' if path.is_dir() else 'blob'}/main/{path.relative_to(root).as_posix()}"

    def read(app: Sphinx, name: str, source: list[str]) -> None:
        page = Path(app.env.doc2path(name))
        if page.suffix != ".md":
            return
        document = page
        if shown := _INCLUDE.fullmatch(source[0]):
            document = (page.parent / shown[1]).resolve()
            app.env.note_dependency(document)
            source[0] = _FRONT_MATTER.sub("", document.read_text())
        made = os.path.relpath(pictures, page.parent)
        source[0] = resolved(source[0], document, pages, made, to_repository)

    app.connect("source-read", read)
