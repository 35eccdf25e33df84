"""`python -m benchmarks.rooflines`: print the lower bounds, and what exports leave out."""

from benchmarks.rooflines import left_out, probe_bounds, stages

for case in stages.CASES:
    found = list(stages.stages(case, vae_operations=stages.count_vae(case)))
    print(stages.table(case, found), end="\n\n", flush=True)
print(left_out.table(), end="\n\n", flush=True)
print(probe_bounds.table())
