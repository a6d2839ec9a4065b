"""What other programs made of the same inputs, recorded in tests/golden.

A test asks `golden` for what a peer says. `make test` answers with what is recorded, without running the peer;
`make oracles` runs it, and fails where it says something else than what is recorded.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.model.metadata import Value, ValueType

from support.gguf_compare import MODEL_KEYS, data

FOLDER = Path(__file__).resolve().parents[1] / "golden"
LONG = 80


class Golden:
    """The recorded words of a test's peers.

    Args:
        name: of the file in tests/golden.
        case: of the test in that file.
        run_peers: ask the peers too.
        record: and write down what they say.
    """

    def __init__(self, name: str, case: str, *, run_peers: bool, record: bool) -> None:
        self.path = FOLDER / f"{name}.json"
        self.case = case
        self.runs_peers = run_peers or record
        self._records = record

    def __call__(self, peer: Callable[[], Any], *inputs: Path, part: str = "", tolerance: float | None = None) -> Any:
        """What the peer says: numbers, texts, lists and dictionaries.

        Args:
            peer: runs the other program.
            inputs: files and folders that it reads; what is recorded holds for these alone.
            part: tells several questions of a test apart.
            tolerance: how far numbers may be from those that are recorded, relative or absolute, where what is computed
                in floats depends on the processor. Nothing may differ unless told.
        """
        case = f"{self.case} {part}".strip()
        given = digest_of_files(*inputs)
        if self._records:
            # Through JSON, where a tuple is a list.
            said = json.loads(json.dumps(peer()))
            _record(self.path, case, {"inputs": given, "said": said})
            return said
        recorded = json.loads(self.path.read_text(encoding="utf-8")).get(case) if self.path.exists() else None
        if recorded is None:
            pytest.fail(f"nothing is recorded in {self.path.name} for {case!r}: run `make oracles RECORD=1`")
        if recorded["inputs"] != given:
            pytest.fail(
                f"the inputs of {case!r} are not those that {self.path.name} was recorded with: another release of "
                "numpy, mistral-common or transformers made them. `make oracles RECORD=1` records anew"
            )
        if self.runs_peers:
            said, known = json.loads(json.dumps(peer())), recorded["said"]
            expected = known if tolerance is None else pytest.approx(known, rel=tolerance, abs=tolerance)
            assert said == expected, f"the peer no longer says what is recorded in {self.path.name}"
        return recorded["said"]


def _record(path: Path, case: str, content: dict[str, Any]) -> None:
    """Add a case to a file that other processes may be adding to."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = json.loads(file.read() or "{}")
        file.truncate(0)
        file.write(json.dumps({**known, case: content}, indent=1, sort_keys=True) + "\n")


def digest(content: bytes) -> str:
    """The first 16 digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of_files(*paths: Path) -> str:
    """Of all files in these files and folders, by name and content."""
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                name = file.relative_to(path).as_posix() if path.is_dir() else ""
                total.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


class Described(TypedDict):
    """A GGUF file in words: a line a tensor, in their order, with a digest of its bytes; a word a key."""

    tensors: list[str]
    keys: dict[str, str]


def describe_gguf(path: Path) -> Described:
    """Every tensor of a file, and its metadata; the provenance under `general.` and `mconv.` aside."""
    file = read_gguf(path)
    tensors = [
        f"{tensor.name} {tensor.dtype} {'x'.join(map(str, tensor.shape))} {digest(data(tensor))}"
        for tensor in file.tensors
    ]
    keys = {
        key: describe_value(value)
        for key, value in sorted(file.metadata.items())
        if key in MODEL_KEYS or not key.startswith(("general.", "mconv."))
    }
    return {"tensors": tensors, "keys": keys}


def describe_value(value: Value) -> str:
    """Type and content of a value in a line: of a long list the runs of equal items, of what is longer a digest."""
    kind = value.type.name if value.item_type is None else f"{value.type.name} of {value.item_type.name}"
    content = json.dumps(value.content)
    if len(content) <= LONG:
        return f"{kind} = {content}"
    if isinstance(value.content, list):
        runs = json.dumps([[item, len(list(same))] for item, same in itertools.groupby(value.content)])
        if len(runs) <= LONG:
            return f"{kind} runs {runs}"
    return f"{kind} sha256 {digest(content.encode())}"


def restore_value(description: str) -> Value:
    """The value that was described; only a digest cannot be undone."""
    told = re.fullmatch(r"(\w+)(?: of (\w+))? (=|runs) (.*)", description)
    assert told is not None, f"a digest alone is recorded: {description}"
    kind, items, form, text = told.groups()
    content = json.loads(text)
    if form == "runs":
        content = [item for item, count in content for _ in range(count)]
    return Value(ValueType[kind], content, ValueType[items] if items else None)
