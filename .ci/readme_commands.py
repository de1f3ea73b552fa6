"""Print one of the set-up commands of the README, to the letter.

The commands are the README's fenced bash blocks of one line that begin with `pip install -e `. There must be two of
them: what a user types first, and what a contributor types second.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"^```bash\n(?P<command>pip install -e [^\n]+)\n```$", re.MULTILINE)
_EXPECTED = 2


def commands(text: str) -> list[str]:
    """Return the set-up commands in a README, in their order.

    Args:
        text: the README.

    Raises:
        ValueError: if there are not exactly two of them.
    """
    found = [match["command"] for match in _BLOCK.finditer(text)]
    if len(found) != _EXPECTED:
        raise ValueError(
            f"README.md has {len(found)} fenced bash blocks of one line that begins with 'pip install -e '; "
            f"there must be {_EXPECTED}"
        )
    return found


def main(arguments: list[str]) -> int:
    """Print the command of the given number, counted from 1."""
    if arguments not in (["1"], ["2"]):
        print("usage: readme_commands.py 1|2", file=sys.stderr)
        return 2
    try:
        print(commands(_README.read_text(encoding="utf-8"))[int(arguments[0]) - 1])
    except (OSError, ValueError) as error:
        print(f"readme_commands.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
