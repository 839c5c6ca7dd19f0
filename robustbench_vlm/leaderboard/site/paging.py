"""Paging of large boards: rows of each page, compressed rows for sorting and filtering, and pages of reported numbers.

A page has at most 300 kB for a board of a thousand models. The first page of a board also has the rows of all other
pages in compressed form. The script unpacks them, so it can sort and filter all models without a network.
"""

import base64
import zlib
from collections.abc import Sequence

from robustbench_vlm.leaderboard.board import BoardRow, ReportedNumber

PAGE_ROWS = 30
"""Number of models on a page of a board."""
_PAGE_NUMBERS = 300
"""Largest number of reported numbers on a page, if no single paper has more of them."""
_MAX_PACKED = 150_000
"""Largest number of characters of compressed rows. Rows of a thousand models have about 60,000."""
Paper = tuple[str, Sequence[ReportedNumber]]


def row_pages(rows: Sequence[BoardRow]) -> list[Sequence[BoardRow]]:
    """Return the rows of each page of a board, at least one page."""
    return [rows[start : start + PAGE_ROWS] for start in range(0, max(len(rows), 1), PAGE_ROWS)]


def page_name(page: int) -> str:
    """Return the file name of a page of a board. The first page has the number 0."""
    return f"page-{page + 1}.html" if page else "index.html"


def packed(text: str) -> str:
    """Return a text as raw deflate data in base64, for `DecompressionStream("deflate-raw")` in a browser.

    Returns "" if the result would be too large for a page. The rows of such a board can be sorted on each page only.
    """
    compressor = zlib.compressobj(9, wbits=-15)
    found = base64.b64encode(compressor.compress(text.encode()) + compressor.flush()).decode()
    return found if len(found) <= _MAX_PACKED else ""


def reported_pages(papers: Sequence[Paper]) -> list[list[Paper]]:
    """Group papers so that the reported numbers of a group fit on a page. Numbers of a paper may be split."""
    pages: list[list[Paper]] = [[]]
    for paper, numbers in papers:
        for start in range(0, len(numbers), _PAGE_NUMBERS):
            part = numbers[start : start + _PAGE_NUMBERS]
            if pages[-1] and sum(len(each) for _, each in pages[-1]) + len(part) > _PAGE_NUMBERS:
                pages.append([])
            pages[-1].append((paper, part))
    return pages


def papers_by_page(pages: Sequence[Sequence[Paper]]) -> list[tuple[str, int, list[int]]]:
    """Return the name of each paper, how many numbers it reports, and the pages with its numbers, counted from 1."""
    found: dict[str, tuple[int, list[int]]] = {}
    for place, papers in enumerate(pages, start=1):
        for paper, numbers in papers:
            count, places = found.get(paper, (0, []))
            found[paper] = (count + len(numbers), list(dict.fromkeys([*places, place])))
    return [(paper, count, places) for paper, (count, places) in found.items()]
