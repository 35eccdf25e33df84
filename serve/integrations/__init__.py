"""The service by the protocols of other tools; each module has a list `ROUTES`.

- `kserve.py`: the KServe v2 protocol
- `label_studio.py`: Label Studio's ML backend; `label_config.py`: its label configs
- `roboflow.py`: Roboflow's concept segmentation
- `x_anylabeling.py`: X-AnyLabeling's remote server
"""
