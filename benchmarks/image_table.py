"""VAE, beta-VAE, GECO, IWAE, GECO+IWAE and the sigma-VAE on MNIST images, as one markdown table.

    python -m benchmarks.image_table --root data                        full size: the presets as they are
    python -m benchmarks.image_table --root data --steps 3000 --width 16 --batch-size 64 --seeds 0 1    on a CPU

Each row is `train.py mnist-METHOD` and `evaluate.py` on the 10,000 test images. The runs stay in --out. Flags that are
not listed here go to train.py.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from benchmarks.runs import machine, markdown, train_and_evaluate
from seqvae.metrics.published import published_rows

METHODS = ("vae", "beta", "geco", "iwae", "geco-iwae", "sigma")
# A course reproduction of Rezende & Viola 2018: rate (its "marginal KL") and squared error at the posterior mean.
PUBLISHED = {
    method: tuple(score[0] for score in (row.rate, row.squared_error))
    for method, row in zip(("vae", "beta", "geco", "geco-iwae"), published_rows("images", "mnist"), strict=True)
}


def over_seeds(read) -> object:
    """A column: mean over the row's seeds, and their standard deviation where there are several."""

    def cell(row: dict) -> str:
        values = [read(report) for report in row["reports"]]
        return f"{mean(values):.2f}" + (f" +- {stdev(values):.2f}" if len(values) > 1 else "")

    return cell


def average(report: dict, name: str) -> float:
    """Of a per-frame list; an image has one frame."""
    return mean(report["bounds"][name])


def main(argv: list[str] | None = None) -> None:
    """Trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/image_table"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n-images", type=int, default=10_000, help="test images")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args, more = parser.parse_known_args(argv)

    rows = {}
    for method in args.methods:
        reports = []
        for seed in args.seeds:
            flags = [f"mnist-{method}", "--data.root", args.root, "--optim.steps", str(args.steps)]
            flags += ["--model.width", str(args.width), "--optim.batch-size", str(args.batch_size)]
            flags += ["--run.seed", str(seed), "--run.checkpoint-every", "1000", "--compute.workers", "0", *more]
            evaluation = ["--n-videos", str(args.n_images), "--batch-size", "250"]
            evaluation += ["--n-importance", "20", "--checkpoint", "last"]
            reports.append(train_and_evaluate(args.out / f"{method}_{seed}", flags, evaluation))
        failed = [report["end"] for report in reports if "bounds" not in report]
        rows[method] = {"end": failed[0]} if failed else {"bounds": True, "reports": reports}
        rows[method]["method"] = method

    columns = {
        "rate": over_seeds(lambda r: r["bounds"]["rate_nats_per_frame"]),
        "marginal KL": over_seeds(lambda r: average(r, "marginal_kl_per_frame")),
        "mutual information": over_seeds(lambda r: average(r, "mutual_information_per_frame")),
        "SSE, posterior mean": over_seeds(lambda r: r["squared_error"]["posterior mean"]["mean"]),
        "SSE, sampled z": over_seeds(lambda r: r["squared_error"]["posterior sample"]["mean"]),
        "sigma": over_seeds(lambda r: r["sigma"]),
        "ELBO": over_seeds(lambda r: r["bounds"]["elbo_all"]["mean"]),
        "IWAE-20": over_seeds(lambda r: r["bounds"]["iwae_20_all"]["mean"]),
        "active": over_seeds(lambda r: r["bounds"]["active_units"]),
        "published rate / SSE": lambda row: " / ".join(map(str, PUBLISHED.get(row["method"], ("none",)))),
        "minutes": over_seeds(lambda r: r["minutes"]),
    }
    print("\n".join(markdown(columns, rows)))
    first = next((row["reports"][0] for row in rows.values() if "reports" in row), None)
    if first:
        log_n = first["bounds"]["log_n"]
        print(f"\nN = {first['n_images']} test images, log N = {log_n:.2f}; nats per image; {machine()}")


if __name__ == "__main__":
    main()
