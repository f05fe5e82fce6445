"""Where all files of one run are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files and folders under one run folder; no other place builds such a path."""

    root: Path

    @property
    def config(self) -> Path:
        """The training configuration, JSON."""
        return self.root / "config.json"

    @property
    def given_options(self) -> Path:
        """The options that each node was started with, and who gave them, a file per node."""
        return self.root / "given-options"

    def node_options(self, node_name: str) -> Path:
        """Those of one node, JSON."""
        return self.given_options / f"{node_name}.json"

    @property
    def evaluation(self) -> Path:
        """Which checkpoint is evaluated, JSON; in a folder made for that."""
        return self.root / "evaluation.json"

    @property
    def evaluated(self) -> Path:
        """What came of it, JSON."""
        return self.root / "evaluated.json"

    @property
    def metrics(self) -> Path:
        """The history of the run, JSON Lines."""
        return self.root / "metrics.jsonl"

    @property
    def held_metrics(self) -> Path:
        """The line of the history that a failure may still undo, JSON."""
        return self.root / "metrics-held.json"

    @property
    def summary(self) -> Path:
        """The result of the last finished run, JSON."""
        return self.root / "summary.json"

    @property
    def run_id(self) -> Path:
        """Distinguishes this run from an earlier one in the same folder, text."""
        return self.root / "run-id"

    @property
    def microbatch(self) -> Path:
        """The size of micro-batches that the first start has settled, JSON."""
        return self.root / "microbatch.json"

    def decision(self, digest: str) -> Path:
        """What the planner has chosen for the question of that digest, JSON."""
        return self.root / "decisions" / f"{digest}.json"

    def all_decisions(self) -> list[Path]:
        """Those of all questions, the newest last."""
        found = (self.root / "decisions").glob("*.json")
        return sorted(found, key=lambda path: path.stat().st_mtime)

    @property
    def prospects(self) -> Path:
        """What is foreseen of several shapes on the nodes that may be there, a JSON file each."""
        return self.root / "prospects"

    @property
    def outcome(self) -> Path:
        """How the run ended, JSON; absent while it has not."""
        return self.root / "outcome.json"

    @property
    def starts(self) -> Path:
        """How many starts of one job in a row have begun after the same step, JSON."""
        return self.root / "starts.json"

    @property
    def drain(self) -> Path:
        """Asks the run to stop in good order, by being there."""
        return self.root / "drain.json"

    @property
    def corruption(self) -> Path:
        """What was found to be corrupted, a JSON file each."""
        return self.root / "corruption"

    @property
    def left_out(self) -> Path:
        """Nodes that take no part any more, a JSON file each."""
        return self.corruption / "left-out"

    def corruption_mark(self, era: int, stage: int) -> Path:
        """What the replicas of a stage found in an era."""
        return self.corruption / f"era-{era}-stage-{stage}.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.root / "checkpoints"

    def sync_choice(self, stage: int) -> Path:
        """How the gradients of a stage are summed, as `--sync auto` has measured, JSON."""
        return self.root / "sync" / f"stage-{stage}.json"

    @property
    def image_lists(self) -> Path:
        """Which images there are, a file per folder of class folders, JSON Lines."""
        return self.root / "image-lists"

    @property
    def shard_indexes(self) -> Path:
        """Where the samples of shards are, a file per shard."""
        return self.root / "shard-indexes"

    @property
    def stream_places(self) -> Path:
        """States of streams at some places of an epoch, a JSON file each."""
        return self.root / "stream-places"

    @property
    def tokens(self) -> Path:
        """What tokenizers have made of texts, a file of numbers per text."""
        return self.root / "tokens"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard."""
        return self.root / "tensorboard"

    def tracker_files(self, name: str) -> Path:
        """What a tracker keeps in the run folder, if anything."""
        return self.tensorboard if name == "tensorboard" else self.root / "trackers" / name

    def tracker_journal(self, name: str) -> Path:
        """What a tracker was told of the history, JSON Lines."""
        return self.root / "trackers" / f"{name}.jsonl"

    def tracker_lock(self, name: str) -> Path:
        """Held by the process that tells a tracker; empty."""
        return self.root / "trackers" / f"{name}.lock"

    def tracker_log(self, name: str) -> Path:
        """What the library of a tracker prints, text."""
        return self.root / "trackers" / f"{name}.log"

    @property
    def logs(self) -> Path:
        """One folder per node."""
        return self.root / "logs"

    def node_logs(self, node_name: str) -> Path:
        """The agent's and the workers' logs of one node."""
        return self.logs / node_name

    def rank_logs(self) -> Iterator[Path]:
        """What ranks have printed: logs/NODE/START/attempt_N/LOCAL_RANK/NAME.log, in no order."""
        return self.logs.glob("*/*/attempt_*/*/*.log")

    def flight_record(self, node_name: str, pid: int) -> Path:
        """What a process had begun when a collective of NCCL did not end; torch adds a number."""
        return self.node_logs(node_name) / "nccl" / f"process-{pid}-"

    def stands(self, node_name: str) -> Path:
        """Where ranks of one node stood when they waited too long, a JSON file each."""
        return self.node_logs(node_name) / "stands"

    def now(self, node_name: str) -> Path:
        """What the ranks of one node are doing, JSON; written again and again."""
        return self.node_logs(node_name) / "now.json"

    def all_nows(self) -> list[Path]:
        """The same of all nodes, sorted."""
        return sorted(self.logs.glob("*/now.json"))

    def all_stands(self) -> list[Path]:
        """The files of all ranks that stood, of all nodes, sorted."""
        return sorted(self.logs.glob("*/stands/*.json"))

    @property
    def fence(self) -> Path:
        """Which half of a cut network continues, a folder per job; the rendezvous keeps it."""
        return self.root / "rendezvous" / "fence"

    @property
    def token(self) -> Path:
        """The secret that a node must know to take part, for its owner only."""
        return self.root / "rendezvous" / "token"

    @property
    def events(self) -> Path:
        """What agents and ranks saw, JSON Lines, a file per node."""
        return self.root / "rendezvous" / "events"

    def node_events(self, node_name: str) -> Path:
        """The event log of one node."""
        return self.events / f"{node_name}.jsonl"

    @property
    def claims(self) -> Path:
        """Which run holds this folder, and the one before, a file each."""
        return self.root / "rendezvous" / "claims"

    @property
    def terms(self) -> Path:
        """What the last start of the run was made of, JSON; the next one is compared with it."""
        return self.root / "terms.json"

    @property
    def data_terms(self) -> Path:
        """What the first start has seen of the samples, JSON."""
        return self.root / "data.json"

    @property
    def report(self) -> Path:
        """The run as one page, HTML."""
        return self.root / "report.html"

    @property
    def profiles(self) -> Path:
        """What `--profile` has written, a folder per range of steps."""
        return self.root / "profile"

    def rank_trace(self, folder: str, bundle: int, stage: int, replica: int) -> Path:
        """The profile of one rank, JSON of torch's profiler, compressed."""
        name = f"bundle-{bundle}-stage-{stage}-replica-{replica}.json.gz"
        return self.profiles / folder / name

    def rank_traces(self, folder: str) -> list[Path]:
        """Those of all ranks that are there."""
        return sorted((self.profiles / folder).glob("bundle-*.json.gz"))

    def timeline(self, folder: str) -> Path:
        """All ranks' profiles together, for Perfetto, compressed JSON."""
        return self.profiles / folder / "timeline.json.gz"

    @property
    def model_profile(self) -> Path:
        """What the pieces of the model cost, JSON; see `launcher.planning.profile_file`."""
        return self.root / "model-profile.json"

    @property
    def cluster(self) -> Path:
        """The nodes and links of the run, TOML; see `launcher.planning.cluster_file`."""
        return self.root / "cluster.toml"

    @property
    def measured_steps(self) -> Path:
        """Steps as ranks have measured them, a folder each."""
        return self.root / "measured-steps"

    def measured_rank(self, step: int, bundle: int, stage: int, replica: int) -> Path:
        """What one rank has measured of a step, JSON."""
        name = f"bundle-{bundle}-stage-{stage}-replica-{replica}.json"
        return self.measured_steps / f"step-{step:09d}" / name

    @property
    def is_used(self) -> bool:
        """Whether a run has begun here, or is queued."""
        marks = (
            self.claims,
            self.terms,
            self.metrics,
            self.checkpoints,
            self.outcome,
            self.slurm_job,
        )
        return any(path.exists() for path in marks)

    @property
    def slurm_job(self) -> Path:
        """Which Slurm job has this folder, JSON."""
        return self.root / "slurm-job.json"

    @property
    def slurm_pulse(self) -> Path:
        """What the job's first node writes again every second, text."""
        return self.root / "slurm-pulse"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint taken after `step` finished steps."""
        return self.checkpoints / f"step-{step:09d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPaths:
    """The snapshots of one run on one node.

    Args:
        root: memory that outlives a process, or a folder that stands for it; of this node.
        uid: of the user.
        run: what tells the run from others, text of any form.
        node_name: of this node; two nodes of the same name may share a folder.
    """

    root: Path
    uid: int
    run: str
    node_name: str

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        digest = hashlib.sha256(self.run.encode()).hexdigest()[:16]
        node = quote(self.node_name, safe="")[:_LONGEST_NAME]
        return self.root / f"{self._prefix}{digest}-{node}"

    @property
    def _prefix(self) -> str:
        return f"bundlerun-snapshot-{self.uid}-"

    def all_folders(self) -> Iterator[Path]:
        """The folders of all runs of the user."""
        return (path for path in self.root.glob(f"{self._prefix}*") if path.is_dir())

    @staticmethod
    def lock(folder: Path) -> Path:
        """What the processes of a run hold for as long as they live."""
        return folder / "lock"

    @staticmethod
    def mark(folder: Path) -> Path:
        """Says that what is in a folder is on no disk, JSON."""
        return folder / "unsaved.json"

    def piece(self, token: str, role: str) -> Path:
        """The file of one piece.

        Args:
            token: the round that writes it.
            role: of the writer in that round, unlike that of any other on this machine.
        """
        return self.folder / f"{token}.{role}.piece"

    def pieces(self) -> list[Path]:
        """The files of all pieces, sorted."""
        return sorted(self.folder.glob("*.piece"))


def trial_folder(base: Path, nonce: str) -> Path:
    """Where `bundlerun doctor` tries what a file system does; hidden, below a folder that exists.

    Args:
        nonce: what no other examination has; `*` for all of them.
    """
    return base / f".bundlerun-doctor-{nonce}"


def run_paths(run_dir: str) -> RunPaths | None:
    """The paths of a run; None: it has no folder, and none is made where its process stands."""
    return RunPaths(Path(run_dir)) if run_dir else None
