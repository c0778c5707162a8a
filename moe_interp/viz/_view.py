"""What a notebook shows as a page in a frame, over a static picture that needs no trust."""

from abc import ABC, abstractmethod
from html import escape
from pathlib import Path

from moe_interp.errors import ResultExistsError


class View(ABC):
    """A page of its own that a notebook can show."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What is shown, with its unit."""

    @abstractmethod
    def to_html(self, *, compress: bool = True) -> str:
        """Give a page of its own: it needs no network and no other file.

        Args:
            compress: Pack scripts and data; without, older browsers can open the page.

        Returns:
            The whole document.
        """

    @abstractmethod
    def static_html(self) -> str:
        """Give what is seen where scripts do not run."""

    @abstractmethod
    def height(self) -> int:
        """How high the frame is, in pixels."""

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page to a file.

        Args:
            path: The HTML file; missing folders are made.
            force: Replace a file that stands there.

        Raises:
            ResultExistsError: If there is a file already and `force` is not set.
        """
        write_page(self.to_html(), Path(path), force=force)

    def _repr_html_(self) -> str:
        # An untrusted notebook drops the frame: the static view beneath it is then what one sees.
        frame = (
            f'<iframe title="{escape(self.title)}" sandbox="allow-scripts" '
            f'srcdoc="{escape(self.to_html())}" style="position:absolute;inset:0;'
            'width:100%;height:100%;border:0;background:#fff"></iframe>'
        )
        return (
            f'<div style="position:relative;min-height:{self.height()}px;background:#fff;'
            f'color:#1d2430;padding:8px">{self.static_html()}{frame}</div>'
        )


def write_page(document: str, path: Path, *, force: bool) -> None:
    """Write a document without ever replacing a file by accident or by half.

    Args:
        document: The page.
        path: Where to write it; missing folders are made.
        force: Replace a file that stands there.

    Raises:
        ResultExistsError: If there is a file already and `force` is not set.
    """
    if path.exists() and not force:
        raise ResultExistsError(
            f"{str(path)!r} already exists. Choose another path, or pass force=True to replace it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(document, encoding="utf-8")
    unfinished.replace(path)
