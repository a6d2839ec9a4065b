"""Split GGUF files."""

from __future__ import annotations

from pathlib import Path

import gguf


def write_parts(file: Path, folder: Path, per_part: int) -> Path:
    """The file cut into parts by gguf-py, with the `split.*` keys that llama-gguf-split writes; gives the first."""
    folder.mkdir()
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=per_part)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, *items = field.types
        writer.add_key_value(field.name, field.contents(), kind, items[-1] if items else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(folder.glob("*.gguf"))
