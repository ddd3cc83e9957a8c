"""Reader of Qt's binary resource files (.rcc): a small read-only file system in one file, all numbers big-endian.

The header gives the offsets of three parts. The tree is an array of fixed-size records, the root first; a folder's
children are consecutive records. Names are UTF-16 with a length and a hash in front, contents are bytes with a length.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_COMPRESSED, _FOLDER, _ZSTD = 1, 2, 4  # flags of a record
_RECORD_SIZE = {1: 14, 2: 22, 3: 22}  # bytes, by version: version 2 added the time of modification
_LANGUAGE_SIZE = 4  # bytes between a file's flags and its data offset: country and language


def read_qresource(path: str | Path) -> dict[str, bytes]:
    """Read all files of a resource file, decompressed.

    Returns:
        Contents by path inside the resource, such as `gcompris/src/.../cow.webp`.

    Raises:
        ValueError: no such file, not a resource file, malformed, of an unknown version, or compressed with Zstandard.
    """
    try:
        return _Reader(Path(path).read_bytes()).files()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except struct.error as error:
        raise ValueError(f"{path} is not a Qt resource file that can be read: it is cut short, {error}") from error
    except (zlib.error, UnicodeDecodeError, _Malformed) as error:
        raise ValueError(f"{path} is not a Qt resource file that can be read: {error}") from error


class _Malformed(Exception):  # noqa: N818 - never leaves this file
    """The bytes contradict the format."""


class _Reader:
    """Walks one resource file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        magic, self._version, self._tree, self._contents, self._names = struct.unpack_from(">4s4I", data)
        if magic != b"qres":
            raise _Malformed(f"it starts with {magic!r}")
        if self._version not in _RECORD_SIZE:
            raise _Malformed(f"version {self._version} is not known")

    def files(self) -> dict[str, bytes]:
        """All files by path."""
        files: dict[str, bytes] = {}
        pending = [("", index) for index in self._children(0)]
        records = len(self._data) // _RECORD_SIZE[self._version]
        for _ in range(records):  # a tree that points back into itself would never end
            if not pending:
                return files
            folder, index = pending.pop()
            offset = self._record(index)
            name_offset, flags = struct.unpack_from(">IH", self._data, offset)
            name = folder + self._name(name_offset)
            if flags & _FOLDER:
                pending += [(f"{name}/", child) for child in self._children(index)]
            else:
                (content,) = struct.unpack_from(">I", self._data, offset + 6 + _LANGUAGE_SIZE)
                files[name] = self._content(content, flags)
        raise _Malformed("its tree has more records than the file has room for")

    def _record(self, index: int) -> int:
        return self._tree + index * _RECORD_SIZE[self._version]

    def _children(self, index: int) -> range:
        flags, count, first = struct.unpack_from(">HII", self._data, self._record(index) + 4)
        if not flags & _FOLDER:
            raise _Malformed("its root is not a folder")
        if count > len(self._data):
            raise _Malformed(f"a folder claims {count} entries")
        return range(first, first + count)

    def _name(self, offset: int) -> str:
        start = self._names + offset
        (length,) = struct.unpack_from(">H", self._data, start)
        return self._slice(start + 6, 2 * length).decode("utf-16-be")  # behind the length lies a hash of 4 bytes

    def _content(self, offset: int, flags: int) -> bytes:
        start = self._contents + offset
        (length,) = struct.unpack_from(">I", self._data, start)
        content = self._slice(start + 4, length)
        if flags & _ZSTD:
            raise _Malformed("it is compressed with Zstandard, which is not supported")
        # Qt puts the uncompressed length in front of the zlib stream.
        return zlib.decompress(content[4:]) if flags & _COMPRESSED else content

    def _slice(self, start: int, length: int) -> bytes:
        if start + length > len(self._data):
            raise _Malformed(f"it is cut short: {start + length} bytes wanted, {len(self._data)} there")
        return self._data[start : start + length]
