"""python -m anifacediff_core …"""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from .lab.cli import main as run
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.lab":
            raise
        print(
            "anifacediff: this copy of the extension has nodes only; the commands come with its repository, "
            "https://github.com/anifacediff/ComfyUI-AniFaceDiff.",
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
