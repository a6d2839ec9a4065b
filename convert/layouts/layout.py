"""The description of a layout that each layout folder provides: how to detect, open and write it, and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mconv.convert.engine.plan import FolderPlan, Plan
    from mconv.convert.model.checkpoint import Checkpoint


ReadOptions = Mapping[str, Any]
"""Read options of layouts by their names, with None for those that are not given: `{"hf_config": None}`."""


@dataclass(frozen=True)
class LayoutOption:
    """An option of a layout: a keyword of the Python functions, and an option of the commands.

    Attributes:
        name: as in Python: `max_shard_size` is `--max-shard-size` on the command line.
        help: what it does, in a sentence or two.
        metavar: placeholder for its value in the usage line.
        choices: the values that it accepts, in upper or lower case; empty if any value is accepted.
        default: its default value.
        is_path: whether it names a file or folder.
    """

    name: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    default: str | None = None
    is_path: bool = False


@dataclass(frozen=True)
class Planned:
    """The plan of a checkpoint in a layout.

    Attributes:
        plan: the plan of the file or folder.
        main_type: the type of the matrices, as shown in results.
        notes: information for the user about the result, such as what it cannot store.
    """

    plan: Plan | FolderPlan
    main_type: str
    notes: tuple[str, ...] = ()


def replaces_all(_: Path) -> bool:
    """Every file of the folder is replaced."""
    return True


def refuses_none(_: Path) -> str:
    """Any folder may be replaced."""
    return ""


@dataclass(frozen=True)
class Layout:
    """How checkpoints are stored on disk.

    Attributes:
        name: its name in commands and results: `hf` in `hf-to-gguf`.
        title: its name in a sentence: "a Hugging Face folder".
        path_kind: whether it is a file or a folder.
        detect: whether a path has this layout, from a quick check; never raises.
        is_fallback: use this layout for a path of its kind that no layout detects: opening it reports what is missing.
        open: opens a checkpoint. Takes its path, and the read options as keywords.
        plan: plans a checkpoint. Takes a checkpoint of any layout, and the write options as keywords; see `Planned`.
        read_options, write_options: its additional options.
        source_name, target_name: placeholder for its path in the usage line of a command.
        source_example, target_example: an example path for the help of the commands, with options that it needs.
        source_help, target_help: its description in the help of a command, as a source and as a target.
        replaces: whether a file in an existing folder is replaced on overwriting, by its path within the folder.
        refuses: why an existing folder must not be replaced, as the end of a sentence; empty if it may be.
        hub_files: patterns of its files in a Hub repository; empty if it cannot be read from the Hub.
    """

    name: str
    title: str
    path_kind: Literal["file", "folder"]
    detect: Callable[[Path], bool]
    open: Callable[..., Checkpoint]
    plan: Callable[..., Planned]
    is_fallback: bool = False
    read_options: tuple[LayoutOption, ...] = ()
    write_options: tuple[LayoutOption, ...] = ()
    source_name: str = "SRC"
    target_name: str = "OUT"
    source_example: str = "SRC"
    target_example: str = "OUT"
    source_help: str = ""
    target_help: str = ""
    replaces: Callable[[Path], bool] = replaces_all
    refuses: Callable[[Path], str] = refuses_none
    hub_files: tuple[str, ...] = ()

    def takes(self, option: str) -> bool:
        """Whether reading this layout takes an option of this name."""
        return any(known.name == option for known in self.read_options)

    def writes_with(self, option: str) -> bool:
        """Whether writing this layout takes an option of this name."""
        return any(known.name == option for known in self.write_options)

    def resolve(self, **options: Any) -> dict[str, Any]:
        """The write options, with defaults filled in; `None` also means the default.

        Raises:
            UsageError: the layout does not have an option, or does not accept its value.
        """
        return _resolved(f"writing {self.title}", self.write_options, options)

    def resolve_read(self, **options: Any) -> dict[str, Any]:
        """The read options, with defaults filled in; see `resolve`."""
        return _resolved(f"reading {self.title}", self.read_options, options)


def _resolved(what: str, known: tuple[LayoutOption, ...], given: dict[str, Any]) -> dict[str, Any]:
    from mconv.convert.errors import UsageError

    by_name = {option.name: option for option in known}
    values: dict[str, Any] = {option.name: option.default for option in known}
    for name, value in given.items():
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        option = by_name.get(name)
        if option is None:
            raise UsageError(f"{flag} does not apply to {what}", f"leave {flag} out")
        if option.choices:
            value = str(value).lower()
            if value not in option.choices:
                raise UsageError(f"{flag} {value!r} is not a valid choice", f"choose {', '.join(option.choices)}")
        values[name] = value
    return values
