"""Sphinx's settings."""

import daemonkit

project = "daemonkit"
author = "The daemonkit authors"
copyright = "2026, the daemonkit authors"
version = release = daemonkit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "daemonkit"
default_role = "code"
myst_heading_anchors = 3
nitpicky = True  # a name that leads nowhere is an error
nitpick_ignore_regex = [
    ("py:.*", r"(?!daemonkit\.).*")
]  # Python's own names are not linked: that takes the network
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 76
python_display_short_literal_types = True
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = (
    "$ "  # copies the commands of a session, without what they print
)
copybutton_exclude = ".linenos, .gp, .go"
