"""What CUPTI says of PM sampling without a GPU: a chip's metrics, which go together, and how calls are laid out.

    python -m benchmarks.pm_metrics [FOLDER…] [--chip GH100]

Below the folders (the installed `nvidia` packages and the toolkit where none are named) every `cupti_pmsampling.h` is
compiled with an assertion for each field of ours (`collectors/samplers/pm_sampling/cupti.py`), and every `libcupti.so`
is asked, by its host's side, for the columns that it can sample in one pass: that is the very code that asks on a GPU,
which besides leaves out what the machine at hand does not offer. CUPTI 13.3 and later answers with a driver only.
`pip download nvidia-cuda-cupti nvidia-cuda-runtime` (or `…-cu12`), unpacked, gives what it needs. Ends with 3 where
there is nothing to check.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import save
from moescope.collectors.samplers.pm_sampling import cupti as abi
from moescope.collectors.samplers.pm_sampling.cupti import Cupti, Refused
from moescope.collectors.samplers.pm_sampling.gpu import passes
from moescope.collectors.samplers.pm_sampling.metrics import choose

HEADERS = ("cupti_target.h", "cupti_profiler_target.h", "cupti_profiler_host.h", "cupti_pmsampling.h")
CONSTANTS = {
    "CUPTI_PROFILER_TYPE_PM_SAMPLING": abi.PM_SAMPLING,
    "CUPTI_PM_SAMPLING_TRIGGER_MODE_GPU_TIME_INTERVAL": abi.GPU_TIME_INTERVAL,
    "CUPTI_PM_SAMPLING_HARDWARE_BUFFER_APPEND_MODE_KEEP_OLDEST": abi.KEEP_OLDEST,
    "CUPTI_PM_SAMPLING_DECODE_STOP_REASON_COUNTER_DATA_FULL": abi.IMAGE_FULL,
    "CUPTI_ERROR_OUT_OF_MEMORY": abi.OUT_OF_MEMORY,
    "CUPTI_ERROR_NOT_INITIALIZED": 15,
    "CUPTI_ERROR_HARDWARE_BUSY": 26,
    "CUPTI_ERROR_NOT_SUPPORTED": abi.NOT_SUPPORTED,
    "CUPTI_ERROR_VIRTUALIZED_DEVICE_NOT_SUPPORTED": 33,
    "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES": 35,
    "CUPTI_ERROR_VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES": 40,
    "CUPTI_ERROR_CONFIDENTIAL_COMPUTING_NOT_SUPPORTED": 41,
    "CUPTI_ERROR_MIG_DEVICE_NOT_SUPPORTED": 43,
    "CUPTI_ERROR_WSL_DEVICE_NOT_SUPPORTED": 45,
}
assert set(abi.REMEDIES) <= set(CONSTANTS.values()), "each result with a remedy is held against its name"


def assertions(header: str) -> str:
    """A C++ file that compiles only where calls are laid out as ours.

    header: text of cupti_pmsampling.h and cupti_result.h; what CUDA 12.6 does not have is left out
    """
    lines = ["#include <cstddef>", "#include <cuda.h>", *(f"#include <{name}>" for name in HEADERS)]
    for params, (_, theirs) in abi.NAMES.items():
        for name, *_rest in (*abi.Params._fields_, *(params._fields_ if params is not abi.Params else ())):
            if name == "hwBufferAppendMode" and name not in header:
                continue
            field = getattr(params, name)
            text = f"offsetof({theirs}, {name}) == {field.offset} && sizeof((({theirs} *)0)->{name}) == {field.size}"
            lines.append(f'static_assert({text}, "{theirs}.{name}");')
    for name, value in CONSTANTS.items():
        if name in header or name.startswith("CUPTI_PROFILER_TYPE"):
            lines.append(f'static_assert((int){name} == {value}, "{name}");')
    return "\n".join([*lines, "int main() { return 0; }", ""])


def layout(folder: Path, includes: list[Path]) -> str:
    """What differs, or that nothing does. folder: where cupti_pmsampling.h lies; includes: where cuda.h may lie"""
    with tempfile.TemporaryDirectory() as made:
        source = Path(made) / "layout.cpp"
        texts = [(folder / name).read_text(errors="replace") for name in ("cupti_pmsampling.h", "cupti_result.h")]
        text = assertions("".join(texts))
        source.write_text(text)
        (Path(made) / "builtin_types.h").write_text("#include <cuda.h>\n")
        paths = [f"-I{path}" for path in (made, folder, *includes)]
        done = subprocess.run(
            ["c++", "-std=c++17", "-w", *paths, "-fsyntax-only", str(source)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    constants = text.count("static_assert((int)")
    if not done.returncode:
        return f"{len(abi.NAMES)} calls and {constants} constants are as declared"
    failed = re.findall(r"static assertion failed: (\S+)", done.stderr)
    return "DIFFERS: " + "; ".join(failed or done.stderr.splitlines()[:3])


def sampled(library: Path, chip: str) -> dict[str, Any]:
    """What a libcupti can sample of a chip; the reason where it does not answer."""
    try:
        cupti = Cupti(str(library))
        made = abi.HostInitialize(profilerType=abi.PM_SAMPLING, pChipName=chip.encode())
        cupti.call(made)
    except (OSError, AttributeError, Refused) as error:
        return {"reason": str(error)}
    cupti.call(abi.HostDeinitialize(pHostObject=made.pHostObject))
    chosen = choose(lambda metrics: passes(cupti, chip.encode(), metrics))
    return {"cupti_api": cupti.version, "one_pass": chosen.metrics, "refused": chosen.refused}


def _asked(library: Path, chip: str) -> dict[str, Any]:
    """`sampled` in a process of its own: a library that ends it costs its own answer alone."""
    call = f"sampled(Path({str(library)!r}), {chip!r})"
    code = f"import json; from benchmarks.pm_metrics import *; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"reason": f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> int:
    """Prints and keeps the result; 0 where all is as declared, 1 where not, 3 where there is nothing to check."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--chip", default="GH100", help="as CUPTI names it")
    a = parser.parse_args()
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    folders = [f for f in a.folders or [site, Path("/usr/local/cuda/extras/CUPTI")] if f.is_dir()]
    headers = sorted({path.resolve().parent for folder in folders for path in folder.rglob("cupti_pmsampling.h")})
    libraries = sorted({path.resolve() for folder in folders for path in folder.rglob("libcupti.so.1[0-9]")})
    cuda = sorted({path.parent for folder in folders for path in folder.rglob("cuda.h")})
    if not headers and not libraries:
        sys.stderr.write("nothing checked: no cupti_pmsampling.h and no libcupti.so below the folders\n")
        return 3
    layouts = {}
    for folder in headers if shutil.which("c++") else ():
        version = _version(folder)
        layouts[version] = layout(folder, [*cuda, Path("/usr/local/cuda/include")])
        print(f"CUPTI API {version} ({folder}): {layouts[version]}")
    answers = []
    for library in libraries:
        answers.append(_asked(library, a.chip))
        told = answers[-1]
        print(f"{library}: {told.get('reason') or json.dumps(told, indent=1)}")
    save("pm_metrics", "python -m benchmarks.pm_metrics FOLDER…", {"chip": a.chip, "layouts": layouts, "host": answers})
    return 1 if any(text.startswith("DIFFERS") for text in layouts.values()) else 0


def _version(folder: Path) -> str:
    found = re.search(r"#define CUPTI_API_VERSION (\d+)", (folder / "cupti_version.h").read_text(errors="replace"))
    return found[1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
