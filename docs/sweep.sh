#!/bin/bash
# A sweep over beta: a run for each, then all of them in one table and on one page (runs/sweep/comparison/report.html).
#
#     bash docs/sweep.sh smmnist-beta --data.root data --optim.steps 20000
#
# Started again, it resumes where it stopped. On Slurm put `sbatch docs/train.sbatch` in the place of "$python" train.py,
# and evaluate when the jobs are done.
set -e
python=${PYTHON:-.venv/bin/python}
runs=()
for beta in ${BETAS:-1e-5 1e-4 1e-3}; do
    run=runs/sweep/beta-$beta
    "$python" train.py "$@" --objective.svg-beta "$beta" --run-dir "$run"
    runs+=("$run")
done
"$python" evaluate.py "${runs[@]}" --n-samples 10 --n-videos 64 --out runs/sweep/comparison
