"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

# Whether a path can be read is for the code that opens it to say.
path_type = click.Path(path_type=Path, readable=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan with its exact sizes; write nothing.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to work with.  [default: all cores]"
)
hf_config_option = click.option(
    "--hf-config",
    type=path_type,
    metavar="DIR|FILE",
    help="config.json and tokenizer of the model, where the checkpoint has none beside it.",
)


@dataclass(frozen=True)
class WriteOptions:
    """How a command that writes files does so: `--dry-run`, `--json`, `--overwrite`, `--threads`."""

    dry_run: bool
    as_json: bool
    overwrite: bool
    threads: int | None

    @property
    def thread_count(self) -> int:
        """Threads to work with."""
        from mconv.convert.engine.threads import default_threads

        return self.threads or default_threads()

    @property
    def verb(self) -> str:
        """What the command says that it did."""
        return "would write" if self.dry_run else "wrote"
