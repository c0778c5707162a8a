"""Fill a store: the blocks of one process, those that are there already left as they are."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from moe_interp.capture._arrays import DIMS
from moe_interp.capture._blocks import plan_store
from moe_interp.capture._session import Capture
from moe_interp.capture._stream import RecordStore
from moe_interp.errors import RemoteRunError, StoreFullError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def fill_store(
    asked: Capture,
    path: str | Path,
    *,
    resume: bool,
    shard: tuple[int, int],
    progress: bool,
) -> bool:
    """Run the blocks of a shard that are not there, and make the record whole if it is the last.

    Args:
        asked: What is recorded.
        path: The folder.
        resume: Whether to go on with what is there.
        shard: Which of how many processes this is.
        progress: Whether to show a progress bar.

    Returns:
        Whether the record is whole.

    Raises:
        ResultExistsError: If the folder holds anything but this capture.
        StoreFullError: If the disk is full.
    """
    kinds, sizes = asked.kinds, asked.sizes
    plan = plan_store(asked.tokens.lengths, sizes, kinds, DIMS, batch_size=asked.batch_size)
    store = RecordStore(path, plan, asked.identity(), asked.tokens)
    n_blocks, ids = plan.n_blocks, asked.prompts.ids
    if not store.check(resume=resume):
        with _room(store, n_blocks):
            store.create(asked.model.architecture, asked.prompts, kinds, sizes)
        # Another process may have made it meanwhile, and of something else.
        store.check(resume=True)
    own = range(shard[0], n_blocks, shard[1])
    waiting = [block for block in own if not store.is_done(block)]
    n_batches = sum(len(asked.batches(*plan.prompts(block))) for block in waiting)
    with _room(store, n_blocks), progress_bar(n_batches, shown=progress) as advance:
        for block in waiting:
            arrays, failed = asked.block(*plan.prompts(block), advance)
            store.write(block, arrays, {ids[n]: why for n, why in failed.items()})
        return store.finish()


@contextmanager
def _room(store: RecordStore, n_blocks: int) -> Iterator[None]:
    """Say what is safe where the disk is full, a server fails, or somebody stops the capture."""
    try:
        yield
    except (KeyboardInterrupt, RemoteRunError) as error:
        error.add_note(f"{_safe(store, n_blocks)} Ask for the same again to go on.")
        raise
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StoreFullError(
            error.errno,
            f"The disk of {str(store.path)!r} is full. {_safe(store, n_blocks)} Make room, and "
            "ask for the same again to go on.",
        ) from error


def _safe(store: RecordStore, n_blocks: int) -> str:
    done = sum(store.mark(block) is not None for block in range(n_blocks))
    return f"{done} of {n_blocks} blocks are safe in {str(store.path)!r}."


@contextmanager
def progress_bar(n_batches: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar where somebody can see it.

    Args:
        n_batches: How many batches there are.
        shown: Whether it is wanted.

    Yields:
        What to call after each batch.
    """
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not (shown and console.is_terminal))
    with bar:
        task = bar.add_task("capturing routing", total=n_batches)
        yield lambda: bar.advance(task)
