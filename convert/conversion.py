"""Conversion of a checkpoint into another layout: plan, check, write."""

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
    """What is written where. It is plain data, so another process can run it.

    Attributes:
        layout: name of the target layout.
        planned: the plan of the file or folder.
        path: the file or folder to write.
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
        """Reject outputs that cannot be written, before writing anything; see `check_outputs` and `check_folder`."""
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
        """Write the output; see `engine.run.run`."""
        output = self.output()
        if isinstance(output, Output):
            return run(
                [output], executor=executor, overwrite=overwrite, keep_partial=keep_partial, on_progress=on_progress
            )
        return run_folder(
            output, executor=executor, overwrite=overwrite, keep_partial=keep_partial, on_progress=on_progress
        )


def plan_conversion(checkpoint: Checkpoint, layout: Layout, path: Path, **options: Any) -> Conversion:
    """Plan every byte of a checkpoint in another layout, without reading any weights.

    Args:
        layout: the target layout.
        path: the file or folder to write.
        options: write options of the layout; None means the default.

    Raises:
        UsageError: the layout does not have an option, or does not accept its value.
        SourceError, MappingError, FormatError, QuantizationError: the checkpoint cannot be converted to this layout.
    """
    planned = layout.plan(checkpoint, **layout.resolve(**options))
    return Conversion(layout.name, planned, path, checkpoint.files)
