"""The paper's ablations, all from one forward pass for each sample and step.

`model` runs a checkpoint in PyTorch and captures everything, `grid` lists the settings,
`setting_masks` computes their masks with the runtime's functions, `scoring` scores a dataset and
can be interrupted, `report` writes tables, plots and a page; `study` does all of it.
"""
