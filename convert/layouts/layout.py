"""What a layout is, as a value that its folder has: how it is detected, opened and written, and with which options."""

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
        metavar: what stands for its value in the usage line.
        choices: the values that it takes, in any case; empty where it takes any.
        default: its value where nothing is given.
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
    """What a checkpoint becomes in a layout.

    Attributes:
        plan: of the file, or of the folder.
        main_type: the type of the matrices, as a result names it.
        notes: what a user should know of the result, such as what it cannot carry.
    """

    plan: Plan | FolderPlan
    main_type: str
    notes: tuple[str, ...] = ()


def replaces_all(_: Path) -> bool:
    """A folder that is replaced whole."""
    return True


def refuses_none(_: Path) -> str:
    """Any folder may be replaced."""
    return ""


@dataclass(frozen=True)
class Layout:
    """A way in which checkpoints lie on a disk.

    Attributes:
        name: in commands and results: `hf` of `hf-to-gguf`.
        title: how a sentence names one: "a Hugging Face folder".
        path_kind: whether one is a file or a folder.
        detect: whether a path is one, at a glance; never raises.
        is_fallback: a path of its kind that no layout detects is taken for one: opening it says what is missing.
        open: opens one. Takes its path, and the read options by their names.
        plan: plans one. Takes a checkpoint of any layout, and the write options by their names; see `Planned`.
        read_options, write_options: what it takes beyond that.
        source_name, target_name: what stands for its path in the usage line of a command.
        source_example, target_example: a path of one in the examples of the commands, with options that it needs.
        source_help, target_help: what the help of a command says of it as a source, or as a target.
        replaces: which files in a folder belong to what is replaced when it is overwritten, by their path within it.
        refuses: why a folder that is there must not be replaced, as the end of a sentence; empty where it may.
        hub_files: patterns of the files that a repository on the Hub has of it; empty where it is not read from there.
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
        """Whether reading one takes an option of this name."""
        return any(known.name == option for known in self.read_options)

    def writes_with(self, option: str) -> bool:
        """Whether writing one takes an option of this name."""
        return any(known.name == option for known in self.write_options)

    def resolve(self, **options: Any) -> dict[str, Any]:
        """The write options with their defaults; `None` stands for a default too.

        Raises:
            UsageError: an option that the layout does not have, or a value that it does not take.
        """
        return _resolved(f"writing {self.title}", self.write_options, options)

    def resolve_read(self, **options: Any) -> dict[str, Any]:
        """The read options with their defaults, see `resolve`."""
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
