"""The service by the protocols of other tools; each module has a list `ROUTES`.

- `x_anylabeling.py`: X-AnyLabeling's remote server
"""
