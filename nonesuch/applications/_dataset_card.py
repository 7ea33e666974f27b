"""The card of a data set, README.md: what it is, what made it, what it holds, what was measured and what was not, in plain words.

It says nothing of the machine or the person, and is the same text however often the job was taken up.

References:
    Datasheets for Datasets (Gebru et al., 2018) arXiv:1803.09010
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from nonesuch.applications._dataset_conditions import tallies
from nonesuch.applications._dataset_files import METADATA
from nonesuch.applications._dataset_job import Job
from nonesuch.applications._dataset_ledger import MANIFEST, TABLE, Ledger
from nonesuch.core.given import AS_TRAINED

_SHOWN = 64  # categories of a column that are listed
_TRAINED = ("data", "fingerprint", "images", "budget", "seed", "augmentation", "verdict", "best look", "held out to watch")
_LOADED = {
    "folder": 'datasets.load_dataset("imagefolder", data_dir="this folder")',
    "nifti": 'datasets.load_dataset("niftifolder", data_dir="this folder")',
    "webdataset": 'datasets.load_dataset("webdataset", data_files="this folder/train-*.tar")',
    "parquet": 'datasets.load_dataset("parquet", data_files="this folder/train-*.parquet")',
}


def card(job: Job, ledger: Ledger, about: Mapping[str, Any], beside: str = "") -> str:
    """The card of a finished job; about: what is known of the model's training; beside: what else stands there."""
    asked, fixed = job.asked, job.fixed
    blocked = sum(entry.get("blocked", 0) for entry in ledger.shards.values())
    lines = [
        *_front(job), f"# {asked['n']:,} pictures drawn by {asked['model']}", "",
        beside or "No picture here shows anything that exists: all of them were drawn by a trained model.", "",
        "| | |", "|---|---|",
        f"| pictures | {asked['n']:,} in {job.shards:,} shards of {asked['per_shard']:,}, as {asked['as']} ({fixed['suffix']}) |",
        f"| model | {asked['model']}, weights sha256 {asked['weights']} |",
        *[f"| the model's training: {k} | {_named(about[k])} |" for k in _TRAINED if k in about],
        *([] if about.get("fingerprint") else ["| the model's training | not recorded: its data is unknown here |"]),
        f"| conditions | {_conditions(asked)} |",
        f"| sampling | seed {asked['seed']}, guidance {asked['guidance'] or 'none'}, {_settings(asked['sampling'])} |",
        f"| computed with | {fixed['threads']} threads, {fixed['precision']}; {'; '.join(map(_build, ledger.builds))} |",
        f"| date | {fixed['date']} |",
        f"| origin in each file | {'yes' if asked['provenance'] else 'no, as was asked'} |",
        "", "## What it holds", "", *_tallied(job), "",
        "## What was measured", "", *_measured(asked, blocked), "",
        "## Limits", "",
        "The pictures are what the model takes its training data for: what is rare there is rarer here, its mistakes and biases",
        "are in them too, and a class that it draws badly is bad here. A condition says what was asked, not what was checked.",
        "Some pictures may repeat training pictures. Do not decide anything about a person on their account.", "",
        "## Licence", "",
        "Nothing here grants a right. What may be done with these pictures can depend on the licence of the data the model",
        "learned from, and on the consent of those it shows: look it up, and write it here before you pass the set on.", "",
        "## Use", "", "```python", "import datasets", _LOADED[asked["as"]], "```", "",
        "## The same set again", "", *_again(asked), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _front(job: Job) -> list[str]:
    """What the Hugging Face hub and `load_dataset` read: which files are pictures."""
    name, suffix = job.asked["as"], job.fixed["suffix"]
    ending = ".nii.gz" if name == "nifti" else suffix
    if job.asked["job"] == "augment":
        path = [f"train/**/*{ending}", f"train/{METADATA}"]
    elif job.layout.loose:
        path = [f"**/*{ending}", *([METADATA] if job.layout.needs_table() else [])]
    else:
        path = [f"train-*{'.tar' if name == 'webdataset' else '.parquet'}"]
    listed = [f"    path: [{', '.join(repr(p) for p in path)}]"]
    return [
        "---",
        "tags: [synthetic, nonesuch]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        *listed,
        "---",
        "",
    ]


def _conditions(asked: Mapping[str, Any]) -> str:
    given = asked["given"]
    said = ["drawn with the frequencies of training" if given == AS_TRAINED else given] if isinstance(given, str) else []
    said += [f"{k} in turn {', '.join(map(_value, v))}" for k, v in (given if isinstance(given, dict) else {}).items()]
    said += [f"{k} in equal parts" for k in asked["balance"]]
    said += [f"the rows of {TABLE}"] if asked["table"] else []
    return _cell("; ".join(said) or "none were given")


def _value(value: Any) -> str:
    return "(missing)" if value is None else str(value)


def _settings(sampling: Mapping[str, Any]) -> str:
    return _cell(", ".join(f"{k} {v}" for k, v in sampling.items())) or "the model's own settings"


def _build(build: Mapping[str, str]) -> str:
    return ", ".join(f"{k} {v}" if k in ("nonesuch", "torch") else v for k, v in build.items())


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _flags(asked: Mapping[str, Any]) -> str:
    guidance = [] if asked["guidance"] is None else [f"--guidance {asked['guidance']:g}"]
    plainly = [] if asked["provenance"] else ["--no-provenance"]
    return " ".join([f"--seed {asked['seed']}", *guidance, *(f"--set {k}={v}" for k, v in asked["sampling"].items()), *plainly])


def _named(value: Any) -> str:
    """A value of the model's card; of a path only its end."""
    return _cell(PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value)


def _tallied(job: Job) -> list[str]:
    """Counts a condition, or that there is none."""
    lines: list[str] = []
    for name, counts in tallies(job.conditions.schema, job.conditions.parts(job.asked["n"], job.asked["seed"])).items():
        shown = list(counts.items())[:_SHOWN]
        lines += [f"| {_cell(name)} | |", "|---|---|", *[f"| {_cell(k)} | {_number(v)} |" for k, v in shown]]
        lines += [f"| and {len(counts) - _SHOWN} more | |"] if len(counts) > _SHOWN else []
        lines.append("")
    return lines[:-1] or ["The model is unconditional: pictures without labels."]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _measured(asked: Mapping[str, Any], blocked: int) -> list[str]:
    check = "; `nonesuch synthesize MODEL --out . --verify 5` makes five of them again and compares"
    lines = [f"Every shard's sha256 stands in {MANIFEST}{check if asked['job'] == 'synthesize' else ''}."]
    if asked["blocking"]:
        share = blocked / (asked["n"] + blocked)
        lines.append(f"Blocked were {_cell(asked['blocking'])}: {blocked:,} pictures ({share:.2%} of those drawn), drawn again.")
    else:
        lines.append("It was not measured whether pictures repeat training pictures: `nonesuch audit` does that.")
    return [*lines, "It was not measured whether they help to train on: `nonesuch score` compares that with real pictures."]


def _again(asked: Mapping[str, Any]) -> list[str]:
    kept = f"{MANIFEST} and {TABLE}" if asked["table"] else MANIFEST
    command = (
        "synthesize MODEL" if asked["job"] == "synthesize" else f"augment DATA MODEL --ratio {asked['ratio']:g} {_flags(asked)}"
    )
    more = " --block-memorized DATA" if asked["blocking"] else ""
    return [
        f"Put {kept} alone into an empty folder, and beside it the model of the sha256 above:", "",
        "```sh", f"nonesuch {command} --out THAT_FOLDER{more}", "```", "",
        "Shards are compared with the recorded sha256 as they are made. They are equal byte for byte on the builds above;",
        "another build rounds otherwise.",
    ]  # fmt: skip
