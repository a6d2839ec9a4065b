"""How to run a release: the commands of each program, from the Hub if the release is published there, or the folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from mconv.release.card.front_matter import base_model
from mconv.release.inputs import ReleaseInputs
from mconv.release.recipe import Recipe
from mconv.release.small_files import MODELFILE, OUMI
from mconv.release.weights import TypeFiles

# Parameters of the OpenAI interface for which a vLLM server can set defaults, by their names in generation_config.json.
_VLLM_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Runner:
    """A program.

    Attributes:
        name: the name of the program.
        language: the language of the commands, for syntax highlighting.
        commands: the commands.
        note: requirements; may be empty.
    """

    name: str
    language: str
    commands: str
    note: str = ""


def runners(recipe: Recipe, inputs: ReleaseInputs, files: TypeFiles) -> list[Runner]:
    """The commands for one type; the user can replace it with any other type."""
    return [
        _llama_cpp(recipe, files),
        *_ollama(recipe, files),
        _lm_studio(recipe, files),
        _llama_cpp_python(recipe, files),
        *_vllm(recipe, inputs, files),
        _oumi(recipe, files),
    ]


def _llama_cpp(recipe: Recipe, files: TypeFiles) -> Runner:
    model = f"-hf {recipe.repository}:{files.type}" if recipe.repository else f"-m {files.first}"
    return Runner("llama.cpp", "sh", f"llama-server {model}")


def _ollama(recipe: Recipe, files: TypeFiles) -> Iterator[Runner]:
    if len(files.parts) > 1:
        return
    if recipe.repository:
        yield Runner("Ollama", "sh", f"ollama run hf.co/{recipe.repository}:{files.type}")
    elif "ollama" in recipe.extras:
        name = recipe.name.lower()
        yield Runner("Ollama", "sh", f"ollama create {name} -f {MODELFILE}\nollama run {name}")


def _lm_studio(recipe: Recipe, files: TypeFiles) -> Runner:
    if recipe.repository:
        return Runner("LM Studio", "sh", f"lms get https://huggingface.co/{recipe.repository}@{files.type}")
    return Runner("LM Studio", "sh", "\n".join(f"lms import {name}" for name in files.parts))


def _llama_cpp_python(recipe: Recipe, files: TypeFiles) -> Runner:
    first, *others = files.parts
    load = f'Llama("{first}", n_ctx=0)'
    if recipe.repository:
        members = [f'repo_id="{recipe.repository}"', f'filename="{first}"']
        members += [f"additional_files={json.dumps(others)}"] if others else []
        load = "Llama.from_pretrained(" + "".join(f"\n    {member}," for member in (*members, "n_ctx=0")) + "\n)"
    lines = (
        "from llama_cpp import Llama",
        "",
        f"llm = {load}",
        'answer = llm.create_chat_completion([{"role": "user", "content": "Hello"}])',
        'print(answer["choices"][0]["message"]["content"])',
    )
    return Runner("llama-cpp-python", "python", "\n".join(lines))


def _vllm(recipe: Recipe, inputs: ReleaseInputs, files: TypeFiles) -> Iterator[Runner]:
    if len(files.parts) > 1:
        return
    model = f"{recipe.repository}:{files.type}" if recipe.repository else f"./{files.first}"
    tokenizer = base_model(recipe, inputs)
    words = ["vllm", "serve", model, *(["--tokenizer", tokenizer] if tokenizer else [])]
    settings = {name: value for name, value in inputs.sampling.items() if name in _VLLM_SETTINGS}
    if "vllm" in recipe.extras and settings:
        words += ["--override-generation-config", json.dumps(settings)]
    note = "through a plugin, and on a GPU"
    yield Runner("vLLM", "sh", f"pip install vllm vllm-gguf-plugin\n{shlex.join(words)}", note)


def _oumi(recipe: Recipe, files: TypeFiles) -> Runner:
    fetch = f"hf download {recipe.repository} {{}} --local-dir .\n" if recipe.repository else ""
    if "oumi" in recipe.extras:
        return Runner("oumi", "sh", f"{fetch.format(OUMI)}oumi infer -i -c {OUMI}")
    names = " ".join(files.parts)
    return Runner(
        "oumi", "sh", f"{fetch.format(names)}oumi infer -i --engine LLAMACPP --model.model_name ./{files.first}"
    )
