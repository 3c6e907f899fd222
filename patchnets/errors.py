"""Expected errors of a run, each reported in one line, and their exit statuses."""

import sys

LONGEST = 4000  # characters of a message on the screen


class UserError(Exception):
    """An invalid request: exit status 2, the work directory is unchanged."""

    status = 2


class RunError(Exception):
    """A failure during a run: exit status 1, saved checkpoints are kept."""

    status = 1


class Preempted(Exception):
    """A run stopped by a signal, with its state saved: exit status 128 + the signal's number."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by signal {signal_number} at step {step}; the same command resumes from there")
        self.status = 128 + signal_number


def report_error(error: BaseException, program: str = "patchnets") -> int:
    """Print an error of this module or an OSError in one line, and return the exit status."""
    text = str(error)
    if isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or text)
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."  # names in a file from others may have any length
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # names of files may hold line breaks
    print(f"{program}: {text}", file=sys.stderr)
    return getattr(error, "status", 1)


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's message as one line, truncated after `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."
