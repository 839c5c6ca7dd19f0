"""Formatting for the pages: visible texts, safe links and file names, numbers, BibTeX.

The templates escape all values, but escaping does not make control characters, links and paths safe. The functions of
this module make them safe.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from robustbench_vlm.core import numbers
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.core.text import bibtex_text, terminal_text
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.models.papers import Paper

_DASH = "\N{EN DASH}"
_ARXIV = re.compile(r"https://arxiv\.org/abs/(\d{4}\.\d{4,5})(v\d+)?", re.ASCII)
_DOI = re.compile(r"https://doi\.org/(10\.\d{4,9}/[\w.()/:;-]+)", re.ASCII)
_NO_KEY = re.compile(r"[^A-Za-z0-9.:/-]", re.ASCII)
_SLUG = re.compile(r"[a-z0-9][a-z0-9._+-]{0,59}", re.ASCII)


def shown(text: object, most: int = 2000) -> str:
    """Return text on one line, with at most `most` characters. Control characters are replaced by visible escapes."""
    line = terminal_text(" ".join(str(text).split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def slug(name: str) -> str:
    """Return a form of a name that is safe as a file name and as an HTML anchor.

    If the name is short and has only plain lower-case characters, it is returned unchanged. For other names, the result
    is a shortened name with a digest.
    """
    if _SLUG.fullmatch(name) and not name.endswith("."):
        return name
    plain = re.sub(r"[^a-z0-9+_]+", "-", name.lower()).strip("-")[:40] or "model"
    return f"{plain}.{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def safe_link(address: str) -> str:
    """Return an https URL that a page may link to, or "" for any other text."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        return ""
    is_plain = address.isascii() and address.isprintable() and not set(address) & set(" \\\"'<>`")
    return address if is_plain and parts.scheme == "https" and "." in host and "@" not in parts.netloc else ""


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as a percentage with one decimal, or a dash for None."""
    return _DASH if share is None else numbers.percent(share)


def interval(accuracy: Accuracy) -> str:
    """Return the ends of a 95 % interval in %."""
    return numbers.percent_interval(accuracy.low, accuracy.high, dash=_DASH)


def radius(eps: str, norm: str) -> str:
    """Format a radius such as "1/51" in the same form as all other outputs.

    For Linf the denominator is 255, such as "5/255".
    """
    return Threat(norm, parse_eps(eps)).eps_text


def signed(number: int) -> str:
    """Return a difference with its sign. The minus sign is typographic."""
    return f"{number:+d}".replace("-", "\N{MINUS SIGN}") if number else "0"


def count(number: int) -> str:
    """Return a count with a comma between groups of three digits."""
    return f"{number:,}"


def bibtex(kind: str, key: str, fields: Iterable[tuple[str, str]]) -> str:
    """Return a BibTeX record. Characters that are special in BibTeX and TeX are removed from the values."""
    plain = {name: bibtex_text(shown(value, 2000)) for name, value in fields if value}
    lines = [f"  {name} = {{{value}}}," for name, value in plain.items()]
    return "\n".join([f"@{kind}{{{_NO_KEY.sub('', key)},", *lines, "}"])


def paper_bibtex(address: str, paper: Paper | None = None) -> str:
    """Return a BibTeX record of a paper with its URL, and its DOI or arXiv number.

    Without the title and the authors in `paper`, the title is the number or the URL. Return "" if the URL is not safe.
    """
    if not safe_link(address):
        return ""
    arxiv, doi = _ARXIV.fullmatch(address), _DOI.fullmatch(address)
    found = {"url": address}
    key, name = slug(address), address
    if arxiv:
        key, name = f"arxiv:{arxiv[1]}", f"arXiv:{arxiv[1]}"
        found |= {"eprint": arxiv[1], "archiveprefix": "arXiv"}
    elif doi:
        key = name = f"doi:{doi[1]}"
        found |= {"doi": doi[1]}
    if not paper:
        return bibtex("misc", key, {"title": name, **found}.items())
    about = {"title": paper.title.replace("&", "and"), "author": " and ".join(paper.authors), "year": str(paper.year)}
    is_preprint = paper.venue == "arXiv"
    about |= {} if is_preprint else {"booktitle": paper.venue}
    last = paper.authors[0].split()[-1] if paper.authors else paper.venue
    first = re.sub(r"[^a-z0-9]", "", paper.title.split()[0].lower())
    return bibtex(
        "misc" if is_preprint else "inproceedings", f"{last.lower()}{paper.year}{first}", (about | found).items()
    )


def project_links(metadata: Sequence[str] | None = None) -> dict[str, str]:
    """Return the links of the project, such as "Documentation" and "Repository", from [project.urls] in pyproject.toml.

    `metadata` has lines such as "Repository, https://example.org". Default: the metadata of the installed package.
    """
    if metadata is None:
        try:
            metadata = importlib.metadata.metadata("robustbench_vlm").get_all("Project-URL") or []
        except importlib.metadata.PackageNotFoundError:
            metadata = []
    found = (line.partition(",")[::2] for line in metadata)
    return {name.strip(): address.strip() for name, address in found if safe_link(address.strip())}


def warning_parts(warning: str) -> tuple[str, str]:
    """Split a warning into its code and the text after the code.

    This text has the datasets or the number of samples.
    """
    code, _, about = warning.partition(":")
    return code, about.strip()


def joined(pairs: Mapping[str, object]) -> str:
    """Return a mapping as text. For example, {"verdicts": 200, "wrong": 1} becomes "verdicts 200, wrong 1"."""
    return ", ".join(f"{shown(name, 100)} {shown(value, 200)}" for name, value in pairs.items())


def benchmark_bibtex(version: str) -> str:
    """Return the BibTeX record of this benchmark. README.md has the same record."""
    title = "robustbench_vlm: a benchmark for the adversarial robustness of zero-shot vision-language models"
    about = {"title": title, "author": "{robustbench_vlm contributors}", "year": "2026", "version": version}
    lines = [f"  {name:<7} = {{{value}}}" for name, value in about.items()]
    return "\n".join(
        ["@software{robustbench_vlm,", ",\n".join(lines).replace("robustbench_vlm", "robustbench\\_vlm"), "}"]
    )
