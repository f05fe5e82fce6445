"""Sites: batch systems that start nodes, as far as the launcher has to know them.

Each is a package of its own that imports this one; so this file only names it, and loads it late.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bundlerun.launcher.options.endpoints import Endpoint
from bundlerun.launcher.run_folder.paths import RunPaths

SITES = {"Slurm": "bundlerun.slurm.site"}
"""Module of each site by its name; it has the site as `SITE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteJob:
    """What a site started this process for.

    site: its name.
    id: of the job, or the step of it, over all of its starts.
    rdzv_id: a name that only this start has.
    may_be_shell: whether people may type one run after another in it.
    """

    site: str
    id: str
    rdzv_id: str
    may_be_shell: bool

    @property
    def folder_name(self) -> str:
        """The name of the run folder that all starts of the job share."""
        return f"{self.site.lower()}-{self.id}"

    @property
    def holder(self) -> str:
        """Who holds the run folder: all nodes, and all starts, of the job."""
        return f"{self.site.lower()} {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePeers:
    """The nodes that a site started together, this one among them.

    name: this node's, in the site's words. index: its place among the endpoints.
    """

    name: str
    index: int
    endpoints: tuple[Endpoint, ...]


class Site(Protocol):
    """A batch system."""

    name: str

    def job(self, environ: Mapping[str, str]) -> SiteJob | None:
        """What it started this process for; None where it did not.

        Raises:
            ConfigError: a variable is not what the site writes.
        """

    def defaults(self, environ: Mapping[str, str], said: Callable[[str], str]) -> Mapping[str, str]:
        """Launch options by name, as text; none where it did not start this process.

        Args:
            said: what the user says about an option, empty where nothing.

        Raises:
            BundleError: what it says does not go together, or this node is not fit.
        """

    def meeting(self, environ: Mapping[str, str]) -> tuple[str, str] | None:
        """Address and port where the ranks that it started itself can meet; None: none did.

        Raises:
            ConfigError: the first node has no address for others.
        """

    def peers(self, environ: Mapping[str, str]) -> SitePeers | None:
        """All nodes that it started this process on; None where that is one, or it did not.

        Raises:
            ConfigError: a node has no address for others.
        """

    def everywhere(self, environ: Mapping[str, str], words: Sequence[str]) -> list[str]:
        """The command that starts `words` on each node of what it has given this process.

        Empty where it gave nothing, or one node, or has started this process on each already.
        """

    def run_dir_of_job(self, number: int) -> Path:
        """The run folder of a job.

        Raises:
            ConfigError: it is none of ours, or has not begun.
            NodeError: the site does not answer.
        """

    def report(self, paths: RunPaths) -> Mapping[str, object] | None:
        """How the job of a run stands, as plain values with its `text`; None without one."""


def sites() -> Iterator[Site]:
    """All sites."""
    for module in SITES.values():
        site: Site = importlib.import_module(module).SITE
        yield site


def site_job(environ: Mapping[str, str]) -> SiteJob | None:
    """What a site started this process for; None where none did."""
    return next((job for site in sites() if (job := site.job(environ)) is not None), None)


def site_defaults(
    environ: Mapping[str, str], said: Callable[[str], str]
) -> dict[str, tuple[str, str]]:
    """Launch options by name, as the sites have them: who says it, and the text."""
    return {
        name: (site.name, text)
        for site in sites()
        for name, text in site.defaults(environ, said).items()
    }


def site_meeting(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Address and port where ranks that a site started can meet; None: no site did."""
    return next((place for site in sites() if (place := site.meeting(environ)) is not None), None)


def site_peers(environ: Mapping[str, str]) -> SitePeers | None:
    """The nodes that a site started together with this one; None where none did."""
    return next((found for site in sites() if (found := site.peers(environ)) is not None), None)


def site_everywhere(environ: Mapping[str, str], words: Sequence[str]) -> list[str]:
    """The command that starts `words` on all nodes that a site has given; empty: on none."""
    return next((found for site in sites() if (found := site.everywhere(environ, words))), [])


def run_dir_of_job(number: int) -> Path:
    """The run folder of a job of the first site; a machine has one."""
    return next(sites()).run_dir_of_job(number)


def site_reports(paths: RunPaths) -> dict[str, Mapping[str, object] | None]:
    """How the job of a run stands, by site; None for a site that has none for it."""
    return {site.name.lower(): site.report(paths) for site in sites()}
