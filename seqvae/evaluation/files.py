"""Evaluations of files of predictions, ours or another program's: which protocols fit, whether the videos are right."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from seqvae.evaluation import bounds
from seqvae.evaluation.plan import Plan, execute, make_plan
from seqvae.evaluation.prediction_file import SavedPredictions
from seqvae.evaluation.request import Evaluation, Request
from seqvae.metrics.protocols import Protocol, find_protocol, own_protocol
from seqvae.provenance import provenance

# What metrics.json says of a run, and a file keeps.
RUN_FACTS = ("run", "checkpoint", "step", "seed", "amp", "actions", "sigma", "geco", "config", "data")


def prepare_file(request: Request, path: Path) -> Evaluation:
    """Saved predictions under the protocols asked for, or those they were made for."""
    args = request.args
    saved = SavedPredictions(path, request.device)
    made_for = saved.facts.get("protocols", {})
    names = (tuple(made_for) or ("own",)) if args.protocol == ("auto",) else args.protocol
    plans, clips, longest = [], None, None
    for name in names:
        protocol = protocol_of_file(saved, name)
        has = {"samples": saved.n_samples, "videos": saved.n_videos}
        sizes = {}
        for (what, available), asked in zip(has.items(), (args.n_samples, args.n_videos)):
            if asked is not None and asked > available:
                raise ValueError(f"--n-{what} {asked}: {path} has {available}")
            sizes[f"n_{what}"] = min(asked or available, getattr(protocol, f"n_{what}"))
        home = path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-scores")
        out = request.out_folder(path, home, name, several=len(names) > 1)
        plan = make_plan(request, protocol, **sizes, out=out)
        plan.facts = measured_before(saved, name, plan)
        found, doubt = test_set_of_file(saved, protocol, sizes["n_videos"], args.data_root, request.load_dataset)
        plan.left_out += doubt
        if longest is None or protocol.n_future > longest.n_future:
            clips, longest = found, protocol
        plans.append(plan)
    facts = {key: saved.facts[key] for key in RUN_FACTS if key in saved.facts}
    others = {key: value for key, value in saved.facts.items() if key not in (*RUN_FACTS, "protocols")}
    facts |= {"predictions": {"file": str(path), **others}, **provenance()}
    oracle = request.oracle(clips, longest, facts.get("seed", 0))
    outs = [plan.out for plan in plans]
    return Evaluation(outs, lambda: execute(request, saved, plans, facts, oracle=oracle))


def measured_before(saved: SavedPredictions, name: str, plan: Plan) -> dict[str, object]:
    """Bounds that the model's evaluation stored for the same videos; ValueError if they are malformed."""
    kept = saved.facts.get("protocols", {}).get(name, {})
    if "bounds" not in kept:
        return {}
    if kept.get("n_videos") != plan.n_videos:
        plan.left_out.append(f"bounds: left out, the file's are of {kept.get('n_videos')} videos; score as many")
        return {}
    found = {"bounds": kept["bounds"]}
    try:
        bounds.describe(found | {key: saved.facts[key] for key in ("sigma", "geco") if key in saved.facts}, 1)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        raise ValueError(f"{saved.path}: the bounds in facts are not what evaluate.py writes; leave them out") from None
    return found


def protocol_of_file(saved: SavedPredictions, name: str) -> Protocol:
    """The protocol `name` for a file; ValueError if its frames do not fit."""
    made_for, data = saved.facts.get("protocols", {}).get(name, {}), saved.facts.get("data")
    if name == "own":
        test_set = saved.facts.get("test_set", {}).get("name", "unnamed videos")
        n_samples = made_for.get("n_samples", saved.n_samples)
        return own_protocol(data or test_set, saved.n_past, saved.n_future, n_samples, saved.n_videos, test_set)
    if data is None:
        raise ValueError(f'{saved.path} does not say which data it predicts ("data" in facts); use --protocol own')
    protocol = find_protocol(name, data)
    if saved.n_past != protocol.n_past or saved.n_future < protocol.n_future:
        raise ValueError(
            f"{saved.path} has {saved.n_past} observed frames and {saved.n_future} predicted ones, and {name} counts "
            f"{protocol.n_past} and {protocol.n_future}; use --protocol own"
        )
    return dataclasses.replace(
        protocol, n_samples=made_for.get("n_samples", protocol.n_samples), note=made_for.get("note", "")
    )


def test_set_of_file(
    saved: SavedPredictions, protocol: Protocol, n_videos: int, data_root: Path | None, load: Callable[..., Dataset]
) -> tuple[Dataset | None, list[str]]:
    """Compare the file's truth with the protocol's test set, if that can be made here; else a sentence says so.

    Args:
        data_root: of the data; None: where the run had them.
        load: load_dataset.

    Raises:
        ValueError: a video is another one.
    """
    length = saved.n_past + protocol.n_future
    arguments = {"name": protocol.test_set, "seq_len": length, "seed": 0, **protocol.options}
    if protocol.name == "own":
        arguments = {**saved.facts.get("test_set", {}), "seq_len": length}
        if "name" not in arguments:
            return None, []  # videos that no data set here claims to hold
    root = data_root
    if root is None and arguments["name"] == "video_folder":
        return None, ["test set: its videos were not compared with own videos; name their folder, --data-root FOLDER"]
    if root is None and saved.facts.get("root") and any(Path(saved.facts["root"]).glob("*")):
        root = saved.facts["root"]  # where the run had its data; a file does not make folders or download into them
    if root is not None and not Path(root).is_dir():
        return None, [f"test set: its videos were not compared with {protocol.test_set}, {root} is not a folder"]
    try:
        clips = load(split="test", root=root, **arguments)
    except (ValueError, TypeError, FileNotFoundError) as error:
        return None, [f"test set: its videos were not compared with {protocol.test_set} ({error}); --data-root FOLDER"]
    for i in range(n_videos):
        if i >= len(clips) or not torch.equal(clips[i], saved.truth(range(i, i + 1))[0, :length]):
            raise ValueError(
                f"{saved.path}: video {i} is not that of {protocol.test_set}; these predictions are of other videos, "
                "or in another order"
            )
    return clips, []
