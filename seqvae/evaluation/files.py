"""Evaluations of files of predictions, ours or another program's."""

from pathlib import Path

from seqvae.evaluation.from_file import measured_before, protocol_of_file, test_set_of_file
from seqvae.evaluation.plan import execute
from seqvae.evaluation.prediction_file import SavedPredictions
from seqvae.evaluation.request import Evaluation, Request
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
        plan = request.plan(protocol, **sizes, out=request.out_folder(path, home, name, several=len(names) > 1))
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
    return Evaluation(outs, lambda: execute(saved, plans, facts, oracle=oracle, **request.execution()))
