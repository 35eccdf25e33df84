"""The training of the built-in model `mini`; not part of the wheel.

`python -m mini.train_vae`, `mini.train` and `mini.assemble` make the checkpoint;
`python -m mini.evaluate` prints the scores of its bundle.
"""
