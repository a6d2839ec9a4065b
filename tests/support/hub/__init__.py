"""A Hugging Face Hub on loopback for the tests: as much of its HTTP interface as huggingface_hub uses for models.

The unmodified client talks to it through HF_ENDPOINT. It stores on disk, so a test can stop it and start it again, and
it fails on purpose when told to (`faults.py`). What the real Hub answers was taken from what the client of
huggingface_hub 2.4 sends and expects (`hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`).
"""
