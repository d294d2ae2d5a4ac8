"""Files behind addresses, https://, s3://, gs:// and what else fsspec knows, in one way each.

names.py     which names are addresses, and how they are shown
requests.py  the store behind an address, tries, errors
http.py      ranges over HTTP
reading.py   files whole, or block by block
folders.py   listings and sizes
writing.py   files put into a store
copies.py    a file that grows here and is kept in a store
outputs.py   a folder in a store that is filled with whole files

A request that breaks (a cut connection, no answer, 429, 5xx) is made again after growing waits; one that is refused
(403, 404) is not. What is raised and logged is one line that never repeats passwords, tokens and signatures.
"""

from octvideo.stores.copies import StoredCopy
from octvideo.stores.folders import check_stores, exists, glob, size_of, sizes_of, videos_at
from octvideo.stores.names import add_shown, by_shown, file_name, is_remote, joined, shown
from octvideo.stores.outputs import StoredFolder, staged
from octvideo.stores.reading import StoredFile, open_file, read_file, read_range, read_text
from octvideo.stores.requests import StoreError, StoreSetupError
from octvideo.stores.writing import check_writable, put_file, remove_file

__all__ = [
    "StoreError",
    "StoreSetupError",
    "StoredCopy",
    "StoredFile",
    "StoredFolder",
    "add_shown",
    "by_shown",
    "check_stores",
    "check_writable",
    "exists",
    "file_name",
    "glob",
    "is_remote",
    "joined",
    "open_file",
    "put_file",
    "read_file",
    "read_range",
    "read_text",
    "remove_file",
    "shown",
    "size_of",
    "sizes_of",
    "staged",
    "videos_at",
]
