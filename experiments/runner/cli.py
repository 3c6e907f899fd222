"""Command-line options shared by the programs that train many runs."""

from collections.abc import Sequence

from patchnets.runtime.cli import ArgumentParser, count, path


def add_run_options(parser: ArgumentParser, seeds: int, runs: str, workdir: str) -> None:
    """Add --seeds, --parallel, --workdir, --report and --list, for a program that trains many runs.

    Args:
      parser: the parser of the program.
      seeds: the default of --seeds.
      runs: the noun for what is repeated with each seed, such as "row".
      workdir: the default of --workdir, for the help text.
    """
    parser.add_argument(
        "--seeds", type=count, default=seeds, metavar="N",
        help=f"runs of each {runs}, with seeds 0 to N - 1 (default: {seeds})",
    )  # fmt: skip
    parser.add_argument("--workdir", type=path, metavar="DIR", help=f"folder for runs and report (default: {workdir})")
    parser.add_argument(
        "--parallel", type=count, metavar="N", help="runs at the same time (default: one per GPU; 1 on a CPU)"
    )
    parser.add_argument("--report", action="store_true", help="report finished runs, train nothing")
    parser.add_argument("--list", action="store_true", help="print the runs, train nothing")


def join_values(arguments: Sequence[str]) -> list[str]:
    """Join each `--name value` of a command line without positional arguments to `--name=value`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and not argument.startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
