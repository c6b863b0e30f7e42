"""Sphinx's settings. `python docs/build.py` builds the site."""

import html
import os
import pathlib

from docutils import nodes

import grain_mix

HERE = pathlib.Path(__file__).parent

project = "grain_mix"
author = "The grain_mix authors"
copyright = "2026, the grain_mix authors"
release = grain_mix.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = "grain_mix"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "footer_content_items": ["copyright", "licence"],
}

# The address of the repository is known where the site is published from.
repository = os.environ.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git")
if "GITHUB_REPOSITORY" in os.environ:
    repository = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
if repository:
    html_theme_options |= {
        "repository_url": repository,
        "use_repository_button": True,
        "use_issues_button": True,
    }

# What is copied runs: without prompts and output.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Docstrings are in Google's style, with code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False
napoleon_attr_annotations = False

# Their inventories are fetched, which a build without a network cannot do.
intersphinx_mapping = {
    "jax": ("https://docs.jax.dev/en/latest/", None),
    "grain": ("https://google-grain.readthedocs.io/en/latest/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
}
if "READTHEDOCS" not in os.environ:
    intersphinx_mapping = {}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Code blocks run in `tests/test_docs.py`, and the notebook when it is renewed.
nb_execution_mode = "off"
nb_merge_streams = True  # what a cell prints is one box


def describe(app, pagename, templatename, context, doctree):
    """Gives each page the description that search engines show: its first paragraph."""
    first = next(iter(doctree.findall(nodes.paragraph)), None) if doctree else None
    if first is not None:
        text = html.escape(" ".join(first.astext().split())[:200])
        context["metatags"] += f'<meta name="description" content="{text}">\n'


def say_once(app, what, name, obj, options, lines):
    """Leaves the parameters that all transforms share to `MixUpBatch`, which comes first."""
    if what == "class" and name.endswith("Batch") and not name.endswith("MixUpBatch"):
        shared = [i for i, line in enumerate(lines) if line.startswith("    targets: ")]
        if shared:
            start = shared[0]
            end = lines.index("", start)
            lines[start:end] = []
            end = lines.index("", start)
            lines.insert(end, "")
            lines.insert(end + 1, "The other parameters are those of `MixUpBatch`.")


def setup(app):
    """Sphinx calls this."""
    app.connect("html-page-context", describe)
    app.connect("autodoc-process-docstring", say_once, priority=100)  # before napoleon


# The tutorial's links, which lead from examples/ to docs/, lead from docs/start/ here.
notebook = (HERE.parent / "examples" / "tutorial.ipynb").read_text()
(HERE / "start" / "tutorial.ipynb").write_text(notebook.replace("](../docs/", "](../"))
