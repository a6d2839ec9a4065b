"""The closed set of errors a user can meet: one line on what went wrong, one line on what to do, one exit code.

Exit codes: 0 done, 1 a validation gate failed, 2 usage, 3 bad or unsupported input, 4 disk or I/O, 5 the Hub,
130 interrupted.
"""

from __future__ import annotations

import errno


class MconvError(Exception):
    """Base class of every error shown to a user.

    Args:
        what: one line that names the file, tensor or option and says what is wrong with it: `out.gguf exists already`.
        hint: one line that says what to do: `choose another name, or pass --overwrite`.
        details: the additional arguments of a subclass, so that it pickles.

    Example:
        >>> error = SourceError("config.json is missing", "download it")
        >>> str(error), error.hint, error.exit_code
        ('config.json is missing', 'download it', 3)
    """

    exit_code = 3

    def __init__(self, what: str, hint: str, *details: object) -> None:
        super().__init__(what, hint, *details)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return self.what


class SourceError(MconvError):
    """A checkpoint that cannot be read: missing, truncated or inconsistent files, weights that are not finite."""


class FormatError(MconvError):
    """A file that breaks the rules of its own format."""


class MappingError(MconvError):
    """A tensor without a place in the target, a place without a tensor, or a shape that contradicts config.json."""


class ShapeError(MappingError):
    """A tensor whose shape does not follow from the hyperparameters.

    Args:
        tensor: its name in the file.
        shape, expected: the shape it has, and the shape it should have.
    """

    def __init__(self, what: str, hint: str, tensor: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        super().__init__(what, hint, tensor, shape, expected)
        self.tensor, self.shape, self.expected = tensor, shape, expected


class QuantizationError(MconvError):
    """A tensor that cannot be quantized to the requested type."""


class ValidationError(MconvError):
    """An artifact that failed a check."""

    exit_code = 1


class UsageError(MconvError):
    """Options that contradict each other or match nothing."""

    exit_code = 2


class DiskError(MconvError):
    """No room, no permission, an output that exists already, or a failed read or write."""

    exit_code = 4


class PublishError(MconvError):
    """The Hub refused a request or could not be reached."""

    exit_code = 5


def disk_error(error: OSError) -> DiskError:
    """Say what an operating-system error means for the file that it names."""
    where = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: "free some space, or choose another output folder",
        errno.EDQUOT: "the quota is used up: free some space, or choose another output folder",
        errno.EFBIG: "the file system or a limit of the shell (ulimit -f) allows no larger file: choose another folder",
        errno.EACCES: "check the permissions",
        errno.EPERM: "check the permissions",
        errno.EROFS: "choose an output folder that can be written",
        errno.ENOENT: "check the path",
    }
    hint = hints.get(error.errno or 0, "check the disk and try again")
    return DiskError(f"{where}{error.strerror or error}", hint)
