"""Sphinx's settings."""

import daemonkit

project = "daemonkit"
author = "The daemonkit authors"
copyright = "2026, the daemonkit authors"
version = release = daemonkit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "daemonkit"
default_role = "code"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 90
python_display_short_literal_types = True
html_static_path = ["_static"]
html_css_files = ["tables.css"]
