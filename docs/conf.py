"""Sphinx builds these pages and the API reference: `make docs`. It needs no network."""

import rism

project = "rism"
author = "the rism authors"
version = release = rism.__version__
html_title = f"rism {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
default_role = "py:obj"
smartquotes = False  # flags such as --token-attention stay as they are
autoclass_content = "both"
autodoc_default_options = {"special-members": "__call__"}
autodoc_typehints = "description"
napoleon_custom_sections = [("Keys", "Attributes")]
python_use_unqualified_type_names = True
