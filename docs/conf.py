import daemonkit

project = "daemonkit"
author = "the daemonkit authors"
copyright = author
version = release = daemonkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"daemonkit {release}"
html_show_copyright = False

default_role = "py:obj"  # what a docstring has in single backquotes; a name that leads nowhere stays plain
smartquotes = False  # code is quoted in sentences, too
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the types of options are in the table, in words
autodoc_class_signature = "separated"  # the class by itself; its constructor is not documented apart
myst_heading_anchors = 3
