"""How the built-in model `mini` was made: its scenes, its training and its score.

Nothing here is in the wheel. `python -m mini.train_vae`, `python -m mini.train`
and `python -m mini.assemble` make the checkpoint; `python -m mini.evaluate`
prints how well its bundle finds things.
"""
