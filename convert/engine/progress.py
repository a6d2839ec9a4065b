"""Report the progress of a run to the current listener (see `convert.reporting`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mconv.convert.engine.run import OnProgress, Progress
from mconv.convert.reporting import Bar, format_bytes, note, progress_bar


@contextmanager
def tell_progress(what: str) -> Iterator[OnProgress]:
    """A callback for `run` that reports how much is done, and how much of it an earlier run did.

    Args:
        what: label of the progress, such as the name of the output.
    """
    bars: list[Bar] = []
    done = 0

    with ExitStack() as shown:

        def tell(progress: Progress) -> None:
            nonlocal done
            if not bars:
                if progress.resumed:
                    share = f"{format_bytes(progress.resumed)} of {format_bytes(progress.total)}"
                    percent = 100 * progress.resumed // max(1, progress.total)
                    note(f"an earlier run was interrupted; continuing from {share} ({percent} %)")
                bars.append(shown.enter_context(progress_bar(progress.total, what)))
            bars[0].update(progress.done - done)
            done = progress.done

        yield tell
