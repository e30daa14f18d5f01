"""The data dictionary, from the schema: `python -m moescope.profiler.export.dictionary > docs/data-dictionary.md`."""

from __future__ import annotations

from moescope.collectors.schema import TABLES
from moescope.profiler.export.csv_files import FILES, OPTIONAL_FILES, columns_of

OVERLAP = (
    ("rank", "int32", "rank of the process"),
    ("device", "string", "device"),
    ("t_us", "double", "start of the bin, µs from the first kernel of any rank"),
    ("bin_us", "double", "width of the bin, µs; a device's last one is shorter"),
    ("compute_us", "double", "time with compute, µs; from here on empty where nothing of the bin was recorded"),
    ("comm_us", "double", "time with communication, µs"),
    ("overlapped_us", "double", "time with both, µs"),
    ("exposed_us", "double", "time with communication and no compute, µs"),
    ("idle_us", "double", "recorded time without any kernel, µs"),
)


def dictionary() -> str:
    """Every table of a recording and every exported file, column by column, as Markdown."""
    lines = [
        "# Data dictionary",
        "",
        "Made from `collectors/schema.py` by `python -m moescope.profiler.export.dictionary`. Times are integer",
        "nanoseconds since the epoch unless a name says otherwise; a null, an empty field in CSV, means not known.",
        "",
        "## Tables of a recording",
    ]
    for name, columns in TABLES.items():
        lines += _section(f"`{name}`", [(column.name, column.type, column.doc) for column in columns])
    lines += [
        "",
        "## Exported files",
        "",
        "`moescope export --to csv` writes RFC 4180 with a header line; control characters in text become `\\xNN`.",
        "",
        "| file | table |",
        "|---|---|",
        "| `kernels.csv` | `kernels`, with the columns below |",
        *(f"| `{file}` | `{table}` |" for table, file in FILES.items()),
        "| `overlap.csv` | the sweep in bins, below |",
        *(f"| `{file}` | `{table}`, where it has rows |" for table, file in OPTIONAL_FILES.items()),
    ]
    lines += _section("`kernels.csv`", columns_of("kernels.csv"))
    lines += _section("`overlap.csv`", list(OVERLAP))
    return "\n".join(lines) + "\n"


def _section(title: str, columns: list[tuple[str, str, str]]) -> list[str]:
    rows = [f"| `{name}` | {kind} | {doc.replace('|', chr(92) + '|')} |" for name, kind, doc in columns]
    return ["", f"### {title}", "", "| column | type | meaning |", "|---|---|---|", *rows]


if __name__ == "__main__":
    import sys

    sys.stdout.write(dictionary())
