"""Small recordings as one file each: what there is, packing, unpacking."""

from __future__ import annotations

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moescope.collectors.schema import META_FILE, SEGMENT_SUFFIX
from moescope.profiler.errors import MoescopeError, UsageProblem

HERE: Final = Path(__file__).parent
LIMIT_BYTES: Final = 2_000_000
_STAMP: Final = (1980, 1, 1, 0, 0, 0)
_DAMAGE: Final = (zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error, EOFError, ValueError, RuntimeError)
"""What reading a damaged archive raises: its lists of names, sizes and methods are believed before they are checked."""


@dataclass(frozen=True)
class Recorded:
    """A recording that ships; devices: what it is of, `cpu` or a GPU's name; about: how it was made."""

    name: str
    path: Path
    devices: tuple[str, ...]
    about: str


def shipped(folder: Path = HERE) -> list[Recorded]:
    """Every recording in `folder`, by name."""
    return [_described(path) for path in sorted(folder.glob("*.zip"))]


def chosen(name: str, folder: Path = HERE) -> Recorded:
    """The recording of this name; the first of a GPU, or else the first, where `name` is empty.

    Raises UsageProblem where there is none.
    """
    there = shipped(folder)
    if not there:
        raise UsageProblem(f"no recording ships with this installation ({folder} holds none): run `moescope demo`")
    if not name:
        return next((one for one in there if one.devices != ("cpu",)), there[0])
    found = next((one for one in there if one.name == name), None)
    if found is None:
        raise UsageProblem(f"no recording {name!r} ships; there are: {', '.join(one.name for one in there)}")
    return found


def pack(recording: Path, path: Path) -> int:
    """Packs a finished recording's tables and state into `path`; its bytes.

    Raises MoescopeError where it is not a finished recording, or larger than LIMIT_BYTES when packed.
    """
    meta = _meta(recording)
    if meta.get("state") != "finished":
        raise MoescopeError(f"{recording} is not finished ({meta.get('state')}): only finished recordings are packed")
    files = [recording / META_FILE, *sorted(recording.glob(f"*/*{SEGMENT_SUFFIX}"))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for file in files:
            # The same recording makes the same archive, whenever it is packed.
            entry = zipfile.ZipInfo(file.relative_to(recording).as_posix(), _STAMP)
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_LZMA)
    size = path.stat().st_size
    if size > LIMIT_BYTES:
        path.unlink()
        raise MoescopeError(
            f"{recording} takes {size / 1e6:.1f} MB when packed, and {LIMIT_BYTES / 1e6:g} MB is the most: "
            "record fewer steps or ranks (`--steps`, `--ranks`)"
        )
    return size


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a recording into `folder`, which is made; nothing is written outside of it.

    Raises MoescopeError where the archive is damaged or holds no recording.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            if META_FILE not in opened.namelist():
                raise MoescopeError(f"{archive} holds no recording: it has no {META_FILE}")
            contents = {entry.filename: opened.read(entry) for entry in list(_entries(opened, archive))}
    except _DAMAGE as error:
        raise MoescopeError(f"{archive} is damaged ({error}): install moescope anew") from None
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _entries(opened: zipfile.ZipFile, archive: Path) -> Iterator[zipfile.ZipInfo]:
    """The recording's files: its state, and segments of tables one folder deep. Raises MoescopeError for any other."""
    for entry in opened.infolist():
        parts = entry.filename.split("/")
        segment = len(parts) == 2 and parts[1].endswith(SEGMENT_SUFFIX)
        plain = not any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts)
        if not plain or not (segment or entry.filename == META_FILE):
            raise MoescopeError(f"{archive} holds {entry.filename!r}, which is no part of a recording: nothing of it")
        yield entry


def _described(path: Path) -> Recorded:
    source = path.with_suffix(".SOURCE.txt")
    about = source.read_text("utf-8").strip() if source.exists() else ""
    try:
        with zipfile.ZipFile(path) as opened:
            meta = json.loads(opened.read(META_FILE))
    except (*_DAMAGE, KeyError) as error:
        raise MoescopeError(f"{path} is damaged ({error}): install moescope anew") from None
    return Recorded(path.stem, path, _devices(meta), about)


def _devices(meta: dict[str, object]) -> tuple[str, ...]:
    """Names of the GPUs that the ranks used, `cpu` where none did."""
    ranks = meta.get("ranks")
    names: set[str] = set()
    for rank in ranks if isinstance(ranks, list) else ():
        properties = rank.get("device_properties") or {}
        of_gpus = {str(one.get("name") or device) for device, one in properties.items() if isinstance(one, dict)}
        names |= of_gpus or {"cpu" if str(rank.get("device", "cpu")) == "cpu" else str(rank["device"])}
    return tuple(sorted(names)) or ("cpu",)


def _meta(recording: Path) -> dict[str, object]:
    try:
        meta = json.loads((recording / META_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise MoescopeError(f"{recording} is no recording that can be read: {error}") from None
    return meta if isinstance(meta, dict) else {}
