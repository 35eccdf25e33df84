"""Results as the files of annotation tools and training sets; `table.FORMATS` has all of them.

- `annotated.py`: what a format is given, and what it is
- `coco.py`, `cvat.py`, `label_studio.py`: one file for all images
- `yolo.py`, `labelme.py`, `index_png.py`: a file for each image
- `brush_rle.py`: Label Studio's run-length encoding
"""
