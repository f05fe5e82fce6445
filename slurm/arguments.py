"""The arguments of `bundlerun submit`."""

from __future__ import annotations

import argparse

from bundlerun.slurm.render import Kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun submit`."""
    parser.description = (
        "Check what can be checked before the queue, write a batch script, submit it. Options of "
        "`bundlerun run` and DATA come after --."
    )
    add = parser.add_argument
    add("--nodes", default="1", metavar="MIN[:MAX]", help="nodes that train (default: 1)")
    add("--spares", type=int, default=0, help="additional nodes, which take a lost one's place")
    add("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each node")
    add("--cpus-per-node", type=int, default=0, metavar="N", help="CPUs of each node, at least")
    add("--time", default="", help="time limit, H:M:S; the run continues in the next start")
    add("--partition", default="", help="partition")
    add("--account", default="", help="account")
    add("--job-name", default="bundlerun", help="name of the job (default: bundlerun)")
    add(
        "--kind",
        choices=[kind.value for kind in Kind],
        default=Kind.BUNDLE.value,
        help="bundle: continues without lost nodes; classic: all or nothing; array: many runs of "
        "one node (default: bundle)",
    )
    add("--array", default="", metavar="0-3", help="with --kind array: one run each")
    add("--requeue-budget", type=int, default=20, metavar="N", help="starts after the first (20)")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="further options for sbatch, such as --sbatch='--constraint=a100 --mail-type=END'",
    )
    add("--dry-run", action="store_true", help="print the script, submit nothing")
    add("words", nargs="*", metavar="-- OPTIONS DATA", help="as for bundlerun run")
