"""How `make docs` makes a site of these pages and of the code. It needs no network, and neither does a reader of it."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(ROOT / "docs")]

project = html_title = "ModalBridge"
copyright = "ModalBridge contributors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "from_code", "for_readers"]

# The root is the source, so that CHANGELOG.md and its like are pages as well, and links are the same here as on a Git host.
root_doc = "docs/index"
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"] + ["README.md"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # tables that benchmarks make begin at the third level
smartquotes = False  # an option is --json
highlight_language = "text"  # of indented blocks: commands and answers

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
default_role = "code"
# Names of the standard library and of httpx lead nowhere: their inventories are on the internet.
nitpick_ignore_regex = [(r"py:.*", r"(?!modalbridge\b).*")]

html_theme = "furo"
html_favicon = "../app/dashboard/static/icon.svg"
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d4ed8", "color-brand-content": "#1d4ed8"},
    "dark_css_variables": {"color-brand-primary": "#8ab4ff", "color-brand-content": "#8ab4ff"},
}
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
