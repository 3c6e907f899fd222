"""The ways in which a run ends that are not bugs, each one line on the terminal."""

import sys


class UserError(Exception):
    """The request cannot be carried out as given: exit status 2, the work directory is as it was."""

    status = 2


class RunError(Exception):
    """A run that was under way had to stop: exit status 1, what was saved stays."""

    status = 1


class Preempted(Exception):
    """A signal asked the run to stop; its state is saved. Exit status 128 + the signal's number."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by signal {signal_number} at step {step}; the same command continues from there")
        self.status = 128 + signal_number


def report_error(error: BaseException, program: str = "patchnets") -> int:
    """Says in one line what ended a program, one of the above or an OSError, and returns the exit status."""
    text = str(error)
    if isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or text)
    print(f"{program}: {text}", file=sys.stderr)
    return getattr(error, "status", 1)


def first_line(error: BaseException, limit: int = 300) -> str:
    """What an error says, in one line of at most about `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."
