"""python -m bnfold, and the program that is installed."""

from __future__ import annotations

import sys

from .process.ends import run


def main() -> None:
    """Run the command that is given, and end as shells expect: see `ends`."""
    sys.exit(run(_command))


def _command() -> int:
    import click

    from .cli import main as command

    out = sys.stdout
    try:
        return command.main(prog_name="bnfold", standalone_mode=False) or 0
    except SystemExit:
        if sys.stdout is not out:  # click's answer to a closed pipe
            raise BrokenPipeError from None
        raise
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code


if __name__ == "__main__":
    main()
