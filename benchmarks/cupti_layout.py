"""Holds our declarations of CUPTI's records against NVIDIA's own headers, of any version at hand.

`python -m benchmarks.cupti_layout [FOLDER…]`: every `cupti_activity.h` below the folders is compiled beside
`collectors/native/cupti_abi.h`, with an assertion for each field's place and size, and the numbers of the calls that
are recorded are looked up by name. Without folders it looks beside the installed `nvidia` packages and in the toolkit.
`pip download nvidia-cuda-cupti nvidia-cuda-runtime` (or `…-cu12`), unpacked, gives what it needs: CUPTI's headers and
`cuda.h`. Ends with 3 where there are none, or no C compiler.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

NATIVE: Final = Path(__file__).resolve().parent.parent / "collectors" / "native"

FIELDS: Final = {
    ("Kernel", "cupti_kernel"): "kind registersPerThread=registers start end deviceId=device contextId=context "
    "streamId=stream gridX=grid[0] gridY=grid[1] gridZ=grid[2] blockX=block[0] blockY=block[1] blockZ=block[2] "
    "staticSharedMemory=static_shared dynamicSharedMemory=dynamic_shared correlationId=correlation name "
    "graphNodeId=graph_node graphId=graph",
    ("Memcpy", "cupti_memcpy"): "kind copyKind=copy_kind srcKind=source_kind dstKind=destination_kind bytes start end "
    "deviceId=device contextId=context streamId=stream correlationId=correlation graphNodeId=graph_node graphId=graph",
    ("MemcpyPtoP", "cupti_memcpy2"): "kind copyKind=copy_kind bytes start end deviceId=device contextId=context "
    "streamId=stream srcDeviceId=source_device dstDeviceId=destination_device correlationId=correlation "
    "graphNodeId=graph_node graphId=graph",
    ("Memset", "cupti_memset"): "kind value bytes start end deviceId=device contextId=context streamId=stream "
    "correlationId=correlation graphNodeId=graph_node graphId=graph",
    ("Synchronization", "cupti_synchronization"): "kind type start end correlationId=correlation contextId=context "
    "streamId=stream cudaEventId=event",
    ("API", "cupti_api"): "kind cbid=function start end processId=process threadId=thread correlationId=correlation "
    "returnValue=result",
    ("ExternalCorrelation", "cupti_external"): "kind externalKind=external_kind externalId=external_id "
    "correlationId=correlation",
}
"""By type of record, NVIDIA's name and ours: the fields that are read, `theirs=ours` where names differ."""

CONSTANTS: Final = {
    "CUPTI_SUCCESS": "CUPTI_OK",
    "CUPTI_ERROR_MAX_LIMIT_REACHED": "CUPTI_NO_MORE_RECORDS",
    **{
        f"CUPTI_ACTIVITY_KIND_{name}": f"CUPTI_{name}"
        for name in ("MEMCPY", "MEMSET", "DRIVER", "RUNTIME", "CONCURRENT_KERNEL", "MEMCPY2", "SYNCHRONIZATION")
    },
    "CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION": "CUPTI_EXTERNAL_CORRELATION",
    "CUPTI_ACTIVITY_FLAG_FLUSH_FORCED": "CUPTI_FLUSH_FORCED",
    "CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM2": "CUPTI_EXTERNAL_CUSTOM2",
    "CUPTI_SYNCHRONIZATION_INVALID_VALUE": "CUPTI_NO_STREAM",
}

CALLS: Final = {
    "runtime": r"(?:__)?cuda(?:Launch(?!HostFunc|Device|_)|GraphLaunch|Memcpy|Memset"
    r"|(?:Thread|Device|Stream|Event)Synchronize|StreamWaitEvent)",
    "driver": r"cu(?:LaunchKernel|LaunchCooperative|GraphLaunch|Memcpy|Memset|(?:Ctx|Stream|Event)Synchronize"
    r"|StreamWaitEvent)",
}
"""Names of the calls whose numbers a device's record may bear."""

BEFORE_64_BIT: Final = 100
"""Driver calls up to this number are of a time of 32-bit addresses on devices: only synchronisation lives on."""


def assertions(header: str) -> str:
    """A C file that compiles only where every field lies where ours does. header: text of cupti_activity.h"""
    lines = ["#include <cuda.h>", "#include <cupti_activity.h>", '#include "cupti_abi.h"']
    for (theirs, ours), fields in FIELDS.items():
        versions = re.findall(rf"^}} CUpti_Activity{theirs}(\d*);", header, re.MULTILINE)
        newest = f"CUpti_Activity{theirs}{max(versions, key=lambda one: int(one or 0))}"
        for field in fields.split():
            name, _, own = field.partition("=")
            own = own or name
            lines.append(
                f"_Static_assert(offsetof({newest}, {name}) == offsetof(struct {ours}, {own}) && "
                f'sizeof((({newest} *)0)->{name}) == sizeof(((struct {ours} *)0)->{own}), "{newest}.{name}");'
            )
    lines += [
        f'_Static_assert((unsigned){name} == (unsigned){own}, "{name}");' for name, own in sorted(CONSTANTS.items())
    ]
    return "\n".join([*lines, "int main(void) { return 0; }", ""])


def calls_of(header: str, api: str) -> dict[int, str]:
    """Numbers and names of an API's calls that are wanted. header: text of cupti_<api>_cbid.h"""
    found = re.findall(rf"CUPTI_{api.upper()}_TRACE_CBID_(\w+)\s*=\s*(\d+)", header)
    wanted = {int(number): name for name, number in found if re.match(CALLS[api], name)}
    if api == "driver":
        # cuMemcpy_v2 names a number that no call has: 13.5 has taken the name away.
        return {
            number: name
            for number, name in wanted.items()
            if (number > BEFORE_64_BIT or "Synchronize" in name) and name != "cuMemcpy_v2"
        }
    return wanted


def declared_calls(api: str) -> set[int]:
    """Numbers of the calls that are recorded."""
    text = (NATIVE / "cupti_abi.h").read_text()
    body = re.search(rf"cupti_{api}_calls\[\] = \{{(.*?)\}};", text, re.DOTALL)
    assert body is not None
    return {int(number) for number in re.findall(r"\d+", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))}


def check(folder: Path, includes: list[Path]) -> list[str]:
    """What differs. folder: where cupti_activity.h lies; includes: where cuda.h may lie"""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as made:
        source = Path(made) / "layout.c"
        source.write_text(assertions((folder / "cupti_activity.h").read_text(errors="replace")))
        # CUPTI's headers ask for the runtime's, of which they use nothing that is looked at here.
        (Path(made) / "builtin_types.h").write_text("#include <cuda.h>\n")
        paths = [f"-I{path}" for path in (made, NATIVE, folder, *includes)]
        done = subprocess.run(
            ["cc", "-std=c11", "-w", *paths, "-c", str(source), "-o", str(Path(made) / "layout.o")],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            failed = re.findall(r"static assertion failed: \"([^\"]+)\"", done.stderr)
            problems += failed or [line for line in done.stderr.splitlines() if "error" in line][:3]
    for api in CALLS:
        theirs = calls_of((folder / f"cupti_{api}_cbid.h").read_text(errors="replace"), api)
        ours = declared_calls(api)
        known = {int(n) for n in re.findall(r"_CBID_\w+\s*=\s*(\d+)", (folder / f"cupti_{api}_cbid.h").read_text())}
        problems += [f"{api} call {theirs[number]} ({number}) is not recorded" for number in sorted(set(theirs) - ours)]
        wrong = (ours & known) - set(theirs)
        problems += [f"{api} call {number} is another one than was meant" for number in sorted(wrong)]
    return problems


def _headers(folders: list[Path]) -> list[Path]:
    return sorted({path.resolve().parent for folder in folders for path in folder.rglob("cupti_activity.h")})


def _version(folder: Path) -> str:
    found = re.search(r"#define CUPTI_API_VERSION (\d+)", (folder / "cupti_version.h").read_text(errors="replace"))
    return f"CUPTI API {found[1]}" if found else "CUPTI"


def main(arguments: list[str]) -> int:
    """Prints a line a version; 0 where all are as declared, 1 where not, 3 where there is nothing to check."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    folders = [Path(word) for word in arguments] or [site, Path("/usr/local/cuda/extras/CUPTI/include")]
    headers = _headers([folder for folder in folders if folder.is_dir()])
    if not headers or shutil.which("cc") is None:
        sys.stderr.write("nothing checked: no cupti_activity.h below the folders, or no C compiler\n")
        return 3
    cuda = sorted({path.parent for folder in folders for path in folder.rglob("cuda.h")})
    failed = False
    for folder in headers:
        # The one that comes with it, or lies closest.
        nearest = sorted(cuda, key=lambda path: -len(_shared(path, folder)))
        problems = check(folder, [*nearest, Path("/usr/local/cuda/include")])
        failed = failed or bool(problems)
        fields = sum(len(names.split()) for names in FIELDS.values())
        told = "; ".join(problems) or f"{fields} fields, {len(CONSTANTS)} constants and all calls are as declared"
        print(f"{_version(folder)} ({folder}): {told}")
    return 1 if failed else 0


def _shared(a: Path, b: Path) -> list[str]:
    return [one for one, other in zip(a.parts, b.parts, strict=False) if one == other]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
