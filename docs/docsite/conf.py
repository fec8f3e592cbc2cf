# SPDX-License-Identifier: GPL-3.0-or-later
"""The site that "make docs" builds from the guides in docs/ and the documentation of the modules and roles."""

from __future__ import annotations

project = "virtops.live_backup"
author = "The virtops.live_backup contributors"
title = html_title = html_short_title = project

# Without intersphinx nothing is fetched. What the reference refers to in Ansible's own documentation is in ansible.rst.
extensions = ["myst_parser", "sphinx_antsibull_ext"]
# Included in index.rst; on GitHub it is what one sees of docs/.
exclude_patterns = ["README.md"]
# Links to headings, as GitHub names them.
myst_heading_anchors = 3

pygments_style = "ansible"
highlight_language = "YAML+Jinja"
html_theme = "sphinx_ansible_theme"
html_theme_options = {"display_version": False}
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
smartquotes = False
nitpicky = True
