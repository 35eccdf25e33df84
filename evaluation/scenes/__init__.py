"""Drawn scenes with known objects and referring expressions, for training and evaluation.

`judged` draws whole scenes with an expression from separate random streams for training, tuning
and test, so that no test scene can be trained on. `scene` places objects, `kinds`, `ruffles` and
`backgrounds` draw them, `expressions` describes them.
"""
