"""rism inside other tools; those that ask over HTTP are in `rism.serve.integrations`.

- `cvat.py`: an auto-annotation function for CVAT
"""
