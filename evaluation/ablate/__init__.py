"""The paper's ablations: one forward pass for each sample and step, everything else from it.

`model` runs a checkpoint in PyTorch with all that is captured, `grid` says which settings are
compared, `reduce` makes overlaps of what a pass gave by the runtime's own functions, `runner`
walks through a dataset and can go on where it stopped, `report` writes tables, plots and a page.
"""
