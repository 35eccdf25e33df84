"""`python -m benchmarks.rooflines`: print the lower bounds of all stages and of the probe."""

from benchmarks.rooflines import probe_bounds, stages

for case in stages.CASES:
    found = list(stages.stages(case, vae_operations=stages.count_vae(case)))
    print(stages.table(case, found), end="\n\n", flush=True)
print(probe_bounds.table())
