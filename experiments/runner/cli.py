"""Options that the programs of this folder share."""

from collections.abc import Sequence

from patchnets.runtime.cli import ArgumentParser, count, path


def add_run_options(parser: ArgumentParser, seeds: int, runs: str, workdir: str) -> None:
    """Add --seeds, --parallel, --workdir, --report and --list, for programs that train many runs.

    Args:
      parser: the parser of the program.
      seeds: the default of --seeds.
      runs: what gets so many seeds, such as "row".
      workdir: the default of --workdir, in words.
    """
    parser.add_argument(
        "--seeds", type=count, default=seeds, metavar="N",
        help=f"runs of each {runs}, with seeds 0 to N - 1 (default: {seeds})",
    )  # fmt: skip
    parser.add_argument("--workdir", type=path, metavar="DIR", help=f"folder for runs and report (default: {workdir})")
    parser.add_argument(
        "--parallel", type=count, metavar="N", help="runs at the same time (default: one per GPU; 1 on a CPU)"
    )
    parser.add_argument("--report", action="store_true", help="write the report of finished runs, train nothing")
    parser.add_argument("--list", action="store_true", help="print what would be trained, train nothing")


def join_values(arguments: Sequence[str]) -> list[str]:
    """A command line of options alone, each `--name value` as `--name=value`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and not argument.startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
