"""Files that are written whole or not at all, and verified before they are read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

Name = str | os.PathLike[str]

_CHUNK = 1 << 20
_DIGEST = 64  # hexadecimal digits of a SHA-256
_NUMBER = itertools.count()


class DamagedFileError(ValueError):
    """A file that is not what was written: damaged, truncated, or changed since."""


class UnverifiedFileWarning(UserWarning):
    """A file without a checksum, so that damage in it is not noticed."""


def warn_unverified(path: Name, reason: str) -> None:
    """Warn that `path` cannot be verified; Python shows the same text once."""
    warnings.warn(f"{os.fspath(path)} is not verified: {reason}", UnverifiedFileWarning, stacklevel=3)


# --- writing ---------------------------------------------------------------------------------------------------------


class _Disk(io.FileIO):
    """Keeps the reason why a write failed: torch's writer replaces every reason by a line about its own source."""

    error: OSError | None = None

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.error = error
            raise


@contextlib.contextmanager
def replacing(path: Name, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file to write and to read back, which replaces `path` at the end of the block: the one way to write a file.

    At any moment, also after an error or a kill, `path` has its old content or all of the new one: a temporary file in
    the same folder (made if missing) is written, synced and renamed; then the folder is synced, so that the new name
    survives a power cut too.

    Args:
        durable: whether to sync.

    Raises:
        OSError: it cannot be written; names `path` and the cause, for example a full disk.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{next(_NUMBER)}.tmp")
    disk: _Disk | None = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            disk = _Disk(part, "w+")
        with io.BufferedRandom(disk) as file:
            yield file
            with writing(path):
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        with writing(path):
            os.replace(part, path)
            if durable and os.name == "posix":
                _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if disk is not None and disk.error is not None:
            raise _named(disk.error, path) from None
        raise


def write_file(path: Name, write: Callable[[IO[bytes]], object], *, durable: bool = True) -> None:
    """:func:`replacing`, with a function that writes."""
    with replacing(path, durable=durable) as file:
        write(file)


@contextlib.contextmanager
def whole_file(path: Name) -> Iterator[IO[str]]:
    """:func:`replacing`, for text in UTF-8."""
    with replacing(path) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        yield text
        text.detach()  # flushes, and leaves the binary file open


@contextlib.contextmanager
def writing(path: Name) -> Iterator[None]:
    """An OSError inside the block is raised as one that names `path`."""
    try:
        yield
    except OSError as error:
        raise _named(error, path) from None


def _named(error: OSError, path: Name) -> OSError:
    return OSError(error.errno, f"{error.strerror or error}, while writing", os.fspath(path))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: IO[bytes], length: int) -> bytes:
    """The SHA-256 of the first `length` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (chunk := file.read(min(length, _CHUNK))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


# --- zip archives, as torch.save writes them -------------------------------------------------------------------------

_END = struct.Struct("<4s4H2LH")  # APPNOTE.TXT 4.3.16, end of central directory record
_END_SIGNATURE = b"PK\5\6"
_MARK = b"fastssd sha256 "


def seal_zip(file: IO[bytes]) -> None:
    """Make the SHA-256 of an archive its comment, which is the end of the file; other readers skip it.

    The digest covers every byte before it, so :func:`check_zip` notices any changed bit.

    Args:
        file: readable and writable; a whole archive without a comment.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(end - 2)
    if file.read(2) != b"\0\0":
        raise ValueError("the archive already has a comment")
    file.seek(end - 2)
    file.write(struct.pack("<H", len(_MARK) + _DIGEST) + _MARK)
    digest = _sha256(file, end + len(_MARK))
    file.seek(0, os.SEEK_END)
    file.write(digest)


def check_zip(file: IO[bytes], name: Name) -> bool:
    """Verify an archive of torch.save, sealed or not, and go back to the start of the file.

    If it is sealed, its SHA-256 is compared; otherwise the CRC-32 of every member, which torch writes but does not
    compare. Nothing in it may be compressed (torch.save never compresses), so reading it takes no more memory than it
    has bytes.

    Returns:
        Whether it is sealed.

    Raises:
        DamagedFileError: names the file and what is wrong with it.
    """
    name = os.fspath(name)
    length = file.seek(0, os.SEEK_END)
    sealed = _sealed(file, length, name)
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive, length)
            if not sealed:
                for member in archive.infolist():
                    with archive.open(member) as content:  # which compares the CRC-32 at the end
                        while content.read(_CHUNK):
                            pass
    except Exception as error:  # zipfile raises many kinds of errors for arbitrary content
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedFileError(f"{name} is damaged: {error}") from error
    file.seek(0)
    return sealed


def _sealed(file: IO[bytes], length: int, name: str) -> bool:
    comment = len(_MARK) + _DIGEST
    file.seek(max(length - comment - _END.size, 0))
    tail = file.read()
    if tail[-_END.size :].startswith(_END_SIGNATURE) and tail.endswith(b"\0\0"):
        return False  # the archive ends without a comment
    end, mark, digest = tail[: _END.size], tail[_END.size : -_DIGEST], tail[-_DIGEST:]
    if mark != _MARK or not end.startswith(_END_SIGNATURE) or end[-2:] != struct.pack("<H", comment):
        raise DamagedFileError(f"{name} is truncated or damaged: its end is missing")
    if _sha256(file, length - _DIGEST) != digest:
        raise DamagedFileError(f"{name} is damaged: its SHA-256 differs from the one at its end")
    return True


def _check_members(archive: zipfile.ZipFile, length: int) -> None:
    names = set()
    total = 0
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} in it is compressed, which torch.save never does")
        if member.filename in names:
            raise ValueError(f"two members are called {member.filename}")
        names.add(member.filename)
        total += member.file_size
    if total > length:
        raise ValueError(f"its members state {total} bytes, the file has {length}")


# --- ONNX files ------------------------------------------------------------------------------------------------------

ONNX_KEY = "fastssd.sha256"  # of the metadata
ONNX_PLACE = "0" * _DIGEST  # the value before the file is sealed, and while it is hashed
# How protobuf writes an entry: field 1, the key; field 2, the value, 64 bytes, which follow.
_ONNX_ENTRY = b"\x0a" + bytes([len(ONNX_KEY)]) + ONNX_KEY.encode() + b"\x12" + bytes([_DIGEST])
# How protobuf begins the name of a file that has a tensor's values (TensorProto.external_data).
_ONNX_ELSEWHERE = b"\x0a\x08location\x12"


def seal_onnx(content: bytes) -> bytes:
    """The file with its SHA-256 as the value of :data:`ONNX_KEY` in its metadata.

    The digest is that of the whole file with zeros in this place, so :func:`check_onnx` notices any changed bit, and
    needs to know nothing else about ONNX.
    """
    place = _onnx_place(content)
    if place is None:
        raise ValueError(f"the metadata has no place for a checksum ({ONNX_KEY})")
    return content[:place] + _onnx_digest(content, place) + content[place + _DIGEST :]


def check_onnx(content: bytes, name: Name) -> bool:
    """Verify the bytes of an ONNX file, sealed or not.

    Returns:
        Whether it is sealed.

    Raises:
        DamagedFileError: the checksum is not that of the content.
        ValueError: it keeps tensors in other files.
    """
    place = _onnx_place(content)
    if place is not None and content[place : place + _DIGEST] != _onnx_digest(content, place):
        raise DamagedFileError(
            f"{os.fspath(name)} is damaged, or was changed after it was exported: its SHA-256 is not the one in its "
            "metadata; after a change on purpose, call fastssd.deploy.seal"
        )
    if _ONNX_ELSEWHERE in content:
        raise ValueError(f"{os.fspath(name)} keeps tensors in other files, which are not opened")
    return place is not None


def _onnx_place(content: bytes) -> int | None:
    found = content.rfind(_ONNX_ENTRY)
    return None if found < 0 else found + len(_ONNX_ENTRY)


def _onnx_digest(content: bytes, place: int) -> bytes:
    digest = hashlib.sha256()
    view = memoryview(content)
    for part in (view[:place], ONNX_PLACE.encode(), view[place + _DIGEST :]):
        digest.update(part)
    return digest.hexdigest().encode()
