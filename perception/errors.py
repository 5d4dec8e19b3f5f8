"""Errors that are meant for people: one sentence, no traceback, a non-zero exit code."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """A user, a file or a sensor got something wrong.

    The message is one sentence: what, got, expected, what to do.
    """


def positive_int(text: str) -> int:
    """Read a number of a command line, for `argparse`.

    Raises:
        argparse.ArgumentTypeError: It is below 1.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}, expected 1 or more")
    return number


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command-line entry point and end the process with its exit code.

    An `InputError` becomes one line on stderr and exit code 2; every other exception is our own
    mistake and keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        code = main() or 0
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    sys.exit(code)
