"""What every page that is written has at its head: it asks for nothing from anywhere, whatever its texts say."""

from __future__ import annotations

POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">"
)


def guarded(page: str) -> str:
    """Return a whole HTML page with the policy right behind `<head>`, made where there is none."""
    before, head, behind = page.partition("<head>")
    if head:
        return f"{before}{head}{POLICY}{behind}"
    start, html, rest = page.partition(">") if page.lstrip().lower().startswith("<!doctype") else ("", "", page)
    return f"{start}{html}<head>{POLICY}</head>{rest}"
