"""Signatures in the format of the OpenSSF Model Signing specification, through the model-signing package."""

from __future__ import annotations

from pathlib import Path

from mconv.convert.errors import SourceError, UsageError
from mconv.release.checking import MEASUREMENTS
from mconv.release.files import LEDGER, STATE

SIGNATURE = "model.sig"


def check_signing() -> None:
    """Check that signing is possible.

    Raises:
        UsageError: model-signing is not installed.
    """
    try:
        import model_signing  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the recipe requires a signature, but model-signing cannot be imported ({error})",
            "pip install 'mconv[signing]', or remove 'sign' from the recipe",
        ) from error


def sign(folder: Path, private_key: Path) -> None:
    """Sign all published files of a release, except the signature itself.

    Args:
        private_key: an elliptic-curve key without a password, in PEM form.

    Raises:
        UsageError: model-signing is not installed.
        SourceError: the key cannot be used.
        OSError: the key cannot be read, or the signature cannot be written.
    """
    check_signing()
    from model_signing import hashing, signing

    ignored = [folder / name for name in (SIGNATURE, LEDGER, MEASUREMENTS, STATE)]
    hashed = hashing.Config().set_ignored_paths(paths=ignored)
    partial = folder / f"{SIGNATURE}.partial"
    partial.unlink(missing_ok=True)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key).set_hashing_config(hashed)
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{private_key.name} is not a private key that can sign ({error})",
            "make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ) from error
    config.sign(folder, partial)
    partial.replace(folder / SIGNATURE)
