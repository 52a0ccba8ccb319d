"""The command line that starts a plan."""

from __future__ import annotations

import shlex

from trimtab.cluster import Cluster
from trimtab.model import catalogue
from trimtab.plan.wishes import Wishes


def launch_line(wishes: Wishes, cluster: Cluster, file: str) -> str:
    """What to type: ``trimtab train`` on every GPU of the cluster.

    ``DATA`` stands for the data, ``hostfile`` for DeepSpeed's list of machines.
    """
    words = ["trimtab", "train", file, "--data", "DATA"]
    if wishes.objective != "pretrain":
        words += ["--from", weights_of(wishes)]
    if wishes.tokens is not None:
        words += ["--tokens", str(wishes.tokens)]
    words += ["--ranks", str(cluster.gpus_per_node)]
    if cluster.nodes > 1:
        words += ["--nodes", str(cluster.nodes), "--launcher", "deepspeed", "--hostfile", "hostfile"]
    return shlex.join(words)


def weights_of(wishes: Wishes) -> str:
    """Where the pretrained weights come from: the Hub id of a catalogue name, else what the user named."""
    row = catalogue().get(wishes.model.name)
    hub = [alias for alias in row["aliases"] if "/" in alias] if row else []
    return hub[0] if hub else wishes.job.model or wishes.model.name
