"""A recipe: a TOML file that fully determines a release. The fields below define its schema, and their descriptions are
the comments that `mrelease init` writes."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from mconv.convert.documents import read_toml
from mconv.convert.errors import SourceError, UsageError
from mconv.convert.reporting import parse_bytes
from mconv.quantize.filetypes import find_file_type
from mconv.release.hub_names import check_repository, check_tag

_PATHS = ("source", "hf_config", "imatrix", "gates", "licence_file")
_HOW_TO_BEGIN = "write a first recipe with mrelease init"
_DOCUMENTED = "see the members of a recipe in docs/reference/mrelease.md"
LANGUAGE = r"^[A-Za-z]{2,12}(-[A-Za-z0-9]{2,8})*$"


def _from_its_folder(value: Any, info: ValidationInfo) -> Path:
    """A path in a recipe: relative to the folder of the recipe."""
    if not isinstance(value, str) or not value:
        raise ValueError("it is not a path")
    return (info.context or {}).get("folder", Path()) / from_home(value)


def from_home(path: str) -> Path:
    """A path with `~` expanded.

    Raises:
        ValueError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError("it begins with a home folder that does not exist") from error


def _as_value(check: Callable[[str], str]) -> Callable[[str], str]:
    """Adapt a check of a name to a member of a recipe."""

    def validate(value: str) -> str:
        try:
            return check(value)
        except UsageError as error:
            raise ValueError(error.hint) from error

    return validate


def _source(value: str) -> str:
    from_home(value)
    return value


def _size(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError("it is not a size such as '45GB'")
    return parse_bytes(value)


def _type_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it is not a type such as 'Q4_K_M'")
    return find_file_type(value).name


FromHere = Annotated[Path, BeforeValidator(_from_its_folder)]
TypeName = Annotated[str, BeforeValidator(_type_name)]
TagName = Annotated[str, AfterValidator(_as_value(check_tag))]
RepositoryName = Annotated[str, AfterValidator(_as_value(check_repository))]


class Signing(BaseModel):
    """How a release is signed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    private_key: FromHere


class Recipe(BaseModel):
    """The content of a recipe. Every path is absolute, or relative to the current folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = Field(description="Version of this file's format.")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=96,
        description="Name of the model; the files are called NAME-TYPE.gguf.",
    )
    source: Annotated[str, AfterValidator(_source)] = Field(
        min_length=1,
        description="What is quantized: a Hugging Face or Megatron folder, a GGUF file, or ORGANIZATION/NAME@COMMIT on "
        "the Hub. Paths count from this file's folder.",
    )
    hf_config: FromHere | None = Field(
        default=None,
        description="Configuration and tokenizer, for a Megatron folder that has none.",
        examples=["../model"],
    )
    base_model: RepositoryName | None = Field(
        default=None, description="The model on the Hub that the source is.", examples=["mistralai/Mistral-7B-v0.3"]
    )
    types: list[TypeName] = Field(min_length=1, description="File types, as mquant knows them.")
    recommended: TypeName | None = Field(
        default=None, description="The type to recommend; default: the first one.", examples=["Q4_K_M"]
    )
    imatrix: FromHere | None = Field(
        default=None, description="Importance matrix of llama-imatrix.", examples=["imatrix.gguf"]
    )
    split_above: Annotated[int, BeforeValidator(_size)] = Field(
        default=45_000_000_000,
        description="Files larger than this are split into parts of at most this much tensor data.",
        examples=["45GB"],
    )
    texts: list[FromHere] = Field(
        min_length=1,
        description="Texts to measure perplexity and KL divergence on, in UTF-8; not the calibration text.",
    )
    ctx: int = Field(default=512, ge=8, description="Tokens in a chunk of a text.", examples=[512])
    chunks: int | None = Field(
        default=None, ge=1, description="Chunks to measure of each text; default: all.", examples=[100]
    )
    prompts: list[str] = Field(
        default=[], description="What each file has to answer.", examples=[["What is the capital of France?"]]
    )
    gates: FromHere | None = Field(
        default=None, description="Limits that stop publishing; default: those of mval.", examples=["gates.toml"]
    )
    repository: RepositoryName | None = Field(
        default=None, description="Where it is published.", examples=["organization/name-GGUF"]
    )
    private: bool = Field(default=True, description="Whether a new repository is private.", examples=[True])
    tag: TagName | None = Field(default=None, description="Name of the published commit.", examples=["v1.0"])
    licence: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9.+-]*$",
        description="The Hub's name of the licence; default: what the source's card says.",
        examples=["apache-2.0"],
    )
    licence_name: str | None = Field(default=None, description="What a licence 'other' is called.", examples=["mrl"])
    licence_link: str | None = Field(
        default=None, description="Where its text is.", examples=["https://mistral.ai/licenses/MRL-0.1.md"]
    )
    licence_file: FromHere | None = Field(
        default=None, description="The licence's text; default: LICENSE of the source.", examples=["LICENSE"]
    )
    languages: list[Annotated[str, Field(pattern=LANGUAGE)]] | None = Field(
        default=None, description="Codes of languages; default: those of the source's card.", examples=[["en"]]
    )
    tags: list[str] | None = Field(
        default=None, description="Tags; default: those of the source's card.", examples=[["mistral"]]
    )
    quantized_by: str | None = Field(default=None, description="Who makes the release.", examples=["organization"])
    extras: list[Literal["ollama", "oumi", "vllm"]] = Field(
        default=[],
        description="Ready-to-run files: a Modelfile, oumi-inference.yaml; and a line for vLLM on the card.",
        examples=[["ollama", "oumi", "vllm"]],
    )
    sign: Signing | None = Field(
        default=None,
        description="Sign with an elliptic-curve key; needs the extra mconv[signing].",
        examples=[{"private_key": "key.pem"}],
    )

    @model_validator(mode="after")
    def _check_whole(self) -> Recipe:
        if len(set(self.types)) != len(self.types):
            raise UsageError("types: a type is listed twice", "list each type once")
        if self.recommended_type not in self.types:
            raise UsageError(f"recommended: {self.recommended} is not among the types", f"add it to {self.types}")
        names = [text.name for text in self.texts]
        if len(set(names)) != len(names):
            raise UsageError("texts: two texts have the same file name, which a report shows", "rename one of them")
        if self.licence == "other" and not self.licence_name:
            raise UsageError("licence 'other' has no licence_name", "add licence_name and licence_link")
        return self

    @property
    def recommended_type(self) -> str:
        """The type that the card recommends."""
        return self.recommended or self.types[0]

    @property
    def reading(self) -> dict[str, Any]:
        """The read options of the source's layout that a recipe has."""
        return {"hf_config": self.hf_config}

    def check_paths(self) -> None:
        """Check that files that are read hours later exist, and that the gates are valid.

        Raises:
            SourceError: a path is missing; names the member and the path.
            UsageError: see `read_gates`.
        """
        from mconv.validate.report.gates import read_gates

        named = [(name, getattr(self, name)) for name in ("imatrix", "gates", "licence_file")]
        named += [("texts", text) for text in self.texts]
        named += [("sign.private_key", self.sign.private_key)] if self.sign else []
        for name, path in named:
            if path is not None and not path.is_file():
                raise SourceError(f"{name}: {path} is not a file", "paths are relative to the folder of the recipe")
        if self.hf_config is not None and not self.hf_config.is_dir():
            raise SourceError(
                f"hf_config: {self.hf_config} is not a folder", "paths are relative to the folder of the recipe"
            )
        if self.gates is not None:
            read_gates(self.gates)


def load_recipe(path: Path) -> tuple[Recipe, str]:
    """Read a recipe.

    Returns:
        the recipe, and its text.

    Raises:
        UsageError: it is not TOML, or breaks the schema; names the member, and for an unknown one the nearest known.
        SourceError, FormatError, OSError: see `read_toml`.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a recipe", _HOW_TO_BEGIN)
    content, text = read_toml(path, _HOW_TO_BEGIN)
    try:
        return Recipe.model_validate(content, context={"folder": path.parent}), text
    except ValidationError as error:
        # A missing member may be a misspelled one.
        raise _explain(path, max(error.errors(), key=lambda one: one["type"] == "extra_forbidden")) from error
    except UsageError as error:
        raise UsageError(f"{path.name}: {error.what}", error.hint) from error


def _explain(path: Path, error: ErrorDetails) -> UsageError:
    *outer, name = map(str, error["loc"])
    place = ".".join((*outer, name))
    member = Recipe.model_fields.get((*outer, name)[0])
    hint = f"{member.description} {_DOCUMENTED[0].upper()}{_DOCUMENTED[1:]}" if member else _DOCUMENTED
    if error["type"] == "extra_forbidden":
        known = (Signing if outer else Recipe).model_fields
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        return UsageError(f"{path.name}: {place} is unknown", f"the nearest member is {'.'.join((*outer, *near))}")
    if error["type"] == "missing":
        return UsageError(f"{path.name}: {place} is missing", hint)
    shown = repr(error["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    reason = error["msg"].removeprefix("Value error, ")
    return UsageError(f"{path.name}: {place} is {shown}: {reason[:1].lower()}{reason[1:]}", hint)


def portable_text(text: str) -> str:
    """A recipe as published: paths outside its folder are shortened to their last part, the rest is unchanged.

    Raises:
        UsageError: such a path is written with escapes, so it cannot be found in the text.
    """
    for path in sorted(_paths_out(text), key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    for path in _paths_out(text):
        raise UsageError(f"the recipe's path {path!r} cannot be shortened for publishing", "write it without escapes")
    return text


def _paths_out(text: str) -> set[str]:
    """The paths that reveal folders above that of the recipe."""
    content = tomllib.loads(text)
    found = [content.get(name) for name in _PATHS]
    found += [content.get("sign", {}).get("private_key"), *content["texts"]]
    return {
        path
        for path in found
        if path and (path.startswith(("/", "~")) or ".." in Path(path).parts) and Path(path).name not in ("", "..")
    }
