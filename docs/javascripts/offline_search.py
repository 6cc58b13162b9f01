"""A hook of MkDocs: the script with which the search works from a folder comes with the site, not from another host."""

from __future__ import annotations

ELSEWHERE, HERE = "https://unpkg.com/iframe-worker/shim", "javascripts/iframe-worker.js"


def on_post_page(output: str, **_: object) -> str:
    """The page with its own script."""
    return output.replace(ELSEWHERE, HERE)


def on_post_template(output_content: str, **_: object) -> str:
    """The same for pages that are no Markdown."""
    return output_content.replace(ELSEWHERE, HERE)
