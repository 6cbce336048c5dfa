"""The side door: parse, one public call, print, exit.

Exit codes: 0 done; 1 the models differ, or the model is not usable; 2 wrong usage.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper

import click

from ..version import __version__
from .bench import bench
from .export import export
from .fold import fold, inspect
from .lrn import calibrate, swap_lrn
from .retrain import retrain
from .verify import verify

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="bnfold")
def main() -> None:
    """Take batch normalisation out of trained networks, exactly, and prove it.

    Results go to stdout, progress and warnings to stderr. Exit codes: 0 done; 1 the models differ, or the model is not
    usable; 2 wrong usage; and as shells count them 130 after Ctrl-C, 143 after SIGTERM, 141 where a pipe was closed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names in a model may hold letters that the terminal does not know
            stream.reconfigure(errors="backslashreplace")


for command in (inspect, fold, verify, bench, swap_lrn, calibrate, retrain, export):
    main.add_command(command)
