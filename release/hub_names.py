"""Check names of repositories and tags on the Hub before anything is built or uploaded."""

from __future__ import annotations

import re

from mconv.convert.errors import UsageError

# A subset of the names that git allows for a tag (git-check-ref-format).
_TAG = re.compile(r"(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9_][A-Za-z0-9._+-]*(?<!\.)")


def check_repository(name: str) -> str:
    """Check the name of a repository and return it.

    Raises:
        UsageError: it is not valid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name!r} is not a valid repository name", "write it as ORGANIZATION/NAME") from error
    if "/" not in name:
        raise UsageError(f"{name!r} has no organization or user", "write it as ORGANIZATION/NAME")
    return name


def check_tag(name: str) -> str:
    """Check the name of a tag and return it.

    Raises:
        UsageError: git or the Hub would reject it.
    """
    if not _TAG.fullmatch(name):
        raise UsageError(f"{name!r} is not a valid tag name", "use letters, digits, dots and dashes, as in v1.0")
    return name
