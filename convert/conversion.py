"""A checkpoint on its way into another layout: planned, checked, written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.engine.folder import FolderOutput, check_folder, run_folder
from mconv.convert.engine.outputs import Output, check_outputs
from mconv.convert.engine.plan import Plan
from mconv.convert.engine.run import OnProgress, Progress, run
from mconv.convert.layouts import find_layout
from mconv.convert.layouts.layout import Layout, Planned

if TYPE_CHECKING:
    from mconv.convert.engine.local import Executor
    from mconv.convert.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Conversion:
    """What is written where. It is plain data: another process can carry it out.

    Attributes:
        layout: name of the target's.
        planned: what the source becomes.
        path: the file or folder that it becomes.
        inputs: the files that are read.
    """

    layout: str
    planned: Planned
    path: Path
    inputs: tuple[Path, ...]

    def output(self) -> Output | FolderOutput:
        """The plan and its path."""
        if isinstance(self.planned.plan, Plan):
            return Output(self.planned.plan, self.path)
        layout = find_layout(self.layout)
        return FolderOutput(self.planned.plan, self.path, layout.replaces, layout.refuses)

    def check(self, *, overwrite: bool = False) -> None:
        """Refuse what could not end well, before anything is written; see `check_outputs` and `check_folder`."""
        output = self.output()
        if isinstance(output, Output):
            check_outputs([output], self.inputs, overwrite=overwrite)
        else:
            check_folder(output, self.inputs, overwrite=overwrite)

    def run(
        self,
        *,
        executor: Executor | None = None,
        overwrite: bool = False,
        keep_partial: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Progress:
        """Write it, see `engine.run.run`."""
        output = self.output()
        if isinstance(output, Output):
            return run(
                [output], executor=executor, overwrite=overwrite, keep_partial=keep_partial, on_progress=on_progress
            )
        return run_folder(
            output, executor=executor, overwrite=overwrite, keep_partial=keep_partial, on_progress=on_progress
        )


def plan_conversion(checkpoint: Checkpoint, layout: Layout, path: Path, **options: Any) -> Conversion:
    """Decide every byte of a checkpoint in another layout, without reading a weight.

    Args:
        layout: of the target.
        path: the file or folder to write.
        options: write options of the layout; None stands for the default.

    Raises:
        UsageError: an option that the layout does not have, or a value that it does not take.
        SourceError, MappingError, FormatError, QuantizationError: the checkpoint cannot be had in this layout.
    """
    planned = layout.plan(checkpoint, **layout.resolve(**options))
    return Conversion(layout.name, planned, path, checkpoint.files)
