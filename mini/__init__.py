"""How the built-in demonstrator is made; not part of any package.

`python -m mini.assets` builds the sprites, `mini.train` trains on scenes of them, and
`mini.assemble` makes the checkpoint. `mini.bars` scores a bundle on new scenes of sprites, which
`mini.sets` writes as a dataset of `rism eval`.
"""
