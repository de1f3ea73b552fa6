"""`repertory show`: the card of a method."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Annotated

import typer

from repertory.catalogue import get
from repertory.catalogue.page import page

_BARE_LINK = re.compile(r"<(https?://[^>]+)>")
_LANGUAGE = re.compile(r"^```[a-z]+", re.MULTILINE)
"""A code block's language is left out: to colour a line or two, its grammar would have to be imported."""
_CODE_OR_MATH = re.compile(
    r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?!\s)(?P<inline>[^$]+?)(?<!\s)\$",
    re.DOTALL,
)


def show(
    method: Annotated[str, typer.Argument(help="The method's name, such as 'esam'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a method's card: what it is for, equations, defaults, cost, and the claim's record."""
    entry = get(method)
    if as_json:
        from repertory.cli.output import print_json

        print_json(
            {
                **dataclasses.asdict(entry.card),
                "module": entry.module,
                "summary": entry.summary,
                "sections": dict(entry.sections),
                "capabilities": entry.capabilities(),
                "claim": entry.claim_record(),
            }
        )
        return
    text = page(entry)
    if not sys.stdout.isatty():
        # The page is Markdown, which reads well as it is; rendering it takes longer than all the rest.
        print(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    plain = _LANGUAGE.sub("```", _BARE_LINK.sub(r"\1", _math_as_code(text)))
    Console().print(Markdown(plain, hyperlinks=False))


def _math_as_code(text: str) -> str:
    """Put LaTeX in code, or Markdown would take its underscores and backslashes for its own."""

    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return match["code"]
        if match["block"]:
            return f"\n```\n{match['block'].strip()}\n```\n"
        return f"`{' '.join(match['inline'].split())}`"

    return _CODE_OR_MATH.sub(replace, text)
