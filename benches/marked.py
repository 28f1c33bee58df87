"""Sections of a page that programs write: between <!-- begin NAME --> and <!-- end NAME -->."""

from pathlib import Path


def replace(page: Path, name: str, text: str) -> None:
    """Puts a text in the place of a section; fails if the page has none of that name."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, rest = page.read_text().split(begin, 1)
    _, after = rest.split(end, 1)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
