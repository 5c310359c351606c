"""What runs the program elsewhere: its commands are taken by the program, and what it copies is there."""

from __future__ import annotations

import re
import shlex

import yaml

from cspnet.cli.flags import read_overrides
from cspnet.cli.train import create_parser
from cspnet.recipe.batch import settle_batch
from cspnet.recipe.load import load_recipe
from tests.conftest import ROOT


def test_the_kubernetes_job_trains_a_recipe_with_its_batch() -> None:
    job = yaml.safe_load((ROOT / "scripts" / "kubernetes_train.yaml").read_text())
    assert (job["kind"], job["apiVersion"]) == ("PyTorchJob", "kubeflow.org/v1")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # which the operator looks for
    elastic = job["spec"]["elasticPolicy"]  # without it, or a Master, the operator tells nobody where to meet
    assert elastic["rdzvBackend"] == "c10d"
    assert elastic["minReplicas"] <= worker["replicas"] <= elastic["maxReplicas"]
    processes = worker["replicas"] * int(job["spec"]["nprocPerNode"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])
    assert (ROOT / container["command"][1]).is_file()
    args = create_parser().parse_all(container["args"])
    assert args.resume == "auto"
    recipe, plain = (load_recipe(ROOT / args.recipe, flags).recipe for flags in (read_overrides(args), {}))
    micro, passes = settle_batch(recipe.train, processes)
    assert micro * passes * processes == plain.train.batch_size * plain.train.accumulate
    volumes = {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_container_copies_what_is_there_and_starts_a_door() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
    doors = re.findall(r"^(cspnet-\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (command,) = re.findall(r"^CMD (.*)", text, re.MULTILINE)
    assert yaml.safe_load(command)[0] in doors
    example = re.search(r"cspnet \\\n#\s+(cspnet-train .*)", text)
    assert example is not None
    args = create_parser().parse_all(shlex.split(example[1])[1:])
    assert (ROOT / args.recipe).is_file()
