"""Every decoder under the ELBO, on MNIST images or on Moving MNIST video, as one markdown table.

    python -m benchmarks.decoder_table video --root data                full size
    python -m benchmarks.decoder_table video --root data --steps 400 --width 16 --batch-size 8 --n-videos 64   on a CPU
    python -m benchmarks.decoder_table images --root data --steps 2000 --width 16 --batch-size 64

Densities are trained and scored on dequantised pixels, so that bits per dim bound the bytes' for every decoder. The
runs stay in --out. Flags that are not listed here go to train.py.
"""

import argparse
from pathlib import Path

from benchmarks.runs import machine, markdown, train_and_evaluate
from seqvae.likelihoods import DISCRETE, LIKELIHOODS


def main(argv: list[str] | None = None) -> None:
    """Trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("video", "images"))
    parser.add_argument("--root", required=True, help="folder of MNIST")
    parser.add_argument("--out", type=Path, help="runs/decoder_table_DATA")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--n-videos", type=int, default=256, help="test videos, or images")
    parser.add_argument("--n-samples", type=int, default=10)
    parser.add_argument("--decoders", nargs="+", default=tuple(LIKELIHOODS), choices=tuple(LIKELIHOODS))
    args, more = parser.parse_known_args(argv)
    out = args.out or Path(f"runs/decoder_table_{args.data}")

    rows = {}
    for name in args.decoders:
        flags = ["smmnist-sigma" if args.data == "video" else "mnist-sigma", "--data.root", args.root]
        flags += ["--likelihood.name", name, "--model.width", str(args.width), "--optim.steps", str(args.steps)]
        flags += ["--optim.batch-size", str(args.batch_size), "--optim.lr", str(args.lr), "--optim.warmup", "50"]
        flags += ["--optim.schedule", "cosine", "--run.checkpoint-every", str(max(1, args.steps // 4))]
        flags += ["--run.n-valid", "64", "--compute.workers", "0", *more]
        if name not in DISCRETE:
            flags += ["--likelihood.dequantise", "True"]
        evaluation = ["--n-videos", str(args.n_videos), "--n-importance", "5", "--checkpoint", "last"]
        if args.data == "video":
            evaluation += ["--n-samples", str(args.n_samples), "--batch-size", "8"]
        rows[name] = train_and_evaluate(out / name, flags, evaluation)

    columns = {
        "bits per dim": lambda r: f"{r['bounds']['bits_per_dim']:.3f}",
        "rate": lambda r: f"{r['bounds']['rate_nats_per_frame']:.2f}",
        "RMSE, posterior": lambda r: f"{r['bounds']['rmse']:.4f}",
        "sigma": lambda r: f"{r['sigma']:.4f}" if "sigma" in r else "",
    }
    if args.data == "video":
        for metric, digits in (("psnr", 2), ("ssim", 4)):
            for kind in ("best", "mean", "posterior"):
                columns[f"{metric.upper()}, {kind}"] = lambda r, m=metric, k=kind, d=digits: (
                    f"{r['results'][k][m]['mean']:.{d}f}"
                )
    columns |= {
        "active": lambda r: str(r["bounds"]["active_units"]),
        "skipped steps": lambda r: str(r["skipped"]),
        "minutes": lambda r: f"{r['minutes']:.1f}",
    }
    print("\n".join(markdown(columns, rows)))
    print(f"\n{args.n_videos} test {args.data}; rate in nats per frame; {machine()}")


if __name__ == "__main__":
    main()
