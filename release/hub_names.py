"""The names that the Hub gives a meaning to, checked before anything is built or sent for them."""

from __future__ import annotations

import re

from mconv.convert.errors import UsageError

# What git takes for the name of a tag (git-check-ref-format), as far as anybody needs it.
_TAG = re.compile(r"(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9_][A-Za-z0-9._+-]*(?<!\.)")


def check_repository(name: str) -> str:
    """The name of a repository, as it is.

    Raises:
        UsageError: it is not valid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name!r} is not a valid name of a repository", "write it as ORGANIZATION/NAME") from error
    if "/" not in name:
        raise UsageError(f"{name!r} has no organization or user", "write it as ORGANIZATION/NAME")
    return name


def check_tag(name: str) -> str:
    """The name of a tag, as it is.

    Raises:
        UsageError: git or the Hub would refuse it.
    """
    if not _TAG.fullmatch(name):
        raise UsageError(f"{name!r} is not a valid name of a tag", "write it as v1.0: letters, digits, dots, dashes")
    return name
