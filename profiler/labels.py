"""Few texts over many rows: a number a row, so that rows are compared and summed as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Labels:
    """codes: [rows] place of each row's text in `texts`"""

    codes: NDArray[np.int64]
    texts: list[str]

    def __getitem__(self, row: int) -> str:
        return self.texts[int(self.codes[row])]

    def tolist(self) -> list[str]:
        """Every row's text."""
        return [self.texts[code] for code in self.codes.tolist()]

    def code(self, text: str) -> int:
        """The text's number, a new one where it has none."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)

    def are(self, *texts: str) -> NDArray[np.bool_]:
        """Whether each row's text is one of these: [rows]."""
        return self.mapped([text in texts for text in self.texts], np.bool_)

    def mapped(self, values: Sequence[Any], dtype: Any) -> NDArray[Any]:
        """A value for each row, from one for each text."""
        chosen: NDArray[Any] = np.array(values, dtype)[self.codes] if len(self.codes) else np.empty(0, dtype)
        return chosen

    def put(self, rows: NDArray[np.bool_], text: str) -> None:
        """Give these rows another text."""
        self.codes[rows] = self.code(text)

    def copy(self) -> Labels:
        """The same, to be changed apart."""
        return Labels(self.codes.copy(), list(self.texts))

    def weights(self, values: NDArray[Any]) -> Iterator[tuple[str, float]]:
        """Texts that any row has, and the sum of the rows' values. values: [rows]"""
        sums = np.bincount(self.codes, values, minlength=len(self.texts))
        present = np.bincount(self.codes, minlength=len(self.texts))
        yield from ((text, float(sums[at])) for at, text in enumerate(self.texts) if present[at])


def labels_of(texts: Sequence[str | None] | NDArray[np.object_]) -> Labels:
    """The rows' own texts, "" for None. texts: [rows]"""
    import pyarrow as pa

    return labels_in(pa.chunked_array([pa.array(texts, pa.string())]))


def labels_in(column: pa.ChunkedArray) -> Labels:
    """A column of strings, "" for null: [rows]."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    texts = [text or "" for text in encoded.dictionary.to_pylist()]
    return Labels(encoded.indices.to_numpy().astype(np.int64), texts)


def distinct_rows(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each row, the same for rows that are equal, and the first row of each number: few of many differ."""
    import pyarrow as pa

    codes = np.zeros(table.num_rows, np.int64)
    for name in table.column_names:
        encoded = table.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
        joined = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy()
        codes = pa.array(joined).dictionary_encode().indices.to_numpy().astype(np.int64)
    first = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    first[codes[::-1]] = np.arange(len(codes), dtype=np.int64)[::-1]
    return codes, first
